"""The page: composition, theme, figures, text, and one file per tab. Only this package and app.py
know Gradio."""
