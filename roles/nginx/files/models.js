// All models that are served here, with what each model server says of itself.
// Their locations, and the seconds that an answer may take, are in nginx.conf.
async function list(request) {
    const names = JSON.parse(request.variables.model_names);
    const replies = await Promise.all(names.map((name, place) => request.subrequest(`/.model/${place}`)));
    const models = replies.map((reply, place) => {
        let said = {};
        try {
            said = JSON.parse(reply.responseText);
        } catch (error) {
            // nginx's own answer for a server that gives none.
        }
        const model = { name: names[place], ready: reply.status === 200, version: said.version || null };
        const notice = reply.status === 200 ? said.rejected : said.message;
        return notice ? Object.assign(model, { message: notice }) : model;
    });
    request.headersOut['Content-Type'] = 'application/json';
    request.return(200, JSON.stringify({ models: models }));
}

export default { list };
