"""One self-contained HTML page of scored rows or of a whole run: no network, no framework, texts of models as text."""
