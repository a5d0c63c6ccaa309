"""What the tabs share: tables, figures, text, errors."""
