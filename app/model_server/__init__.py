"""The model server: any MLflow ``pyfunc`` model behind MLflow's scoring protocol, on Flask and Gunicorn.

``python -m model_server`` runs a small supervisor. It holds the listening socket, asks the registry for the
champion, keeps the model on its own disk and runs one Gunicorn (a *generation*) per model version. A new
version is a new generation on the same socket; the old one drains once the new one has answered its example.
"""
