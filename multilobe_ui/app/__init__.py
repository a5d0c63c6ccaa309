"""The state of one server: its model, runs, feedback and costs, and what the page sees of them. No gradio."""
