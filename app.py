"""Start the page: `python app.py`, or as a Hugging Face Space.

MULTILOBE_HOME says where lobes and jobs are kept, MULTILOBE_BASE which base model to load
(otherwise the one chosen last, at first the built-in one).
"""

import sys

from multilobe_ui.errors import MultiLobeError
from multilobe_ui.ui.serve import serve

if __name__ == "__main__":
    try:
        serve()
    except MultiLobeError as error:  # a home that cannot be made, a budget that is no number
        sys.exit(f"multilobe-ui: {error}")
