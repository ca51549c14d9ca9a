"""The web app: FastAPI for who may do what, Gradio for the pages, one panel of our own for the judging."""
