"""The model server: any MLflow ``pyfunc`` model behind MLflow's scoring protocol, on Flask and Gunicorn.

``python -m model_server`` runs a small :mod:`supervisor <model_server.supervisor>`. It holds the listening sockets,
asks the registry for the champion, keeps the model on its own disk and runs one Gunicorn (a *generation*) per model
version, whose :mod:`workers <model_server.worker>` answer. A new version is a new generation on the same sockets; the
old one drains once the new one has answered its example.
"""
