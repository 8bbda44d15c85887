// The client whose bearer token a request carries. A file named by the token's SHA-256 holds the client's name, so what
// is looked up is never the token itself, and a token that is made or revoked holds from the next request on.
import crypto from 'crypto';
import fs from 'fs';

function client(request) {
    const bearer = /^Bearer +([\x21-\x7e]+)$/i.exec(request.headersIn.Authorization || '');
    if (!bearer) {
        return '';
    }
    const digest = crypto.createHash('sha256').update(bearer[1]).digest('hex');
    try {
        return fs.readFileSync(`/etc/nginx/tokens/${digest}`, 'utf8').trim();
    } catch (error) {
        return '';
    }
}

export default { client };
