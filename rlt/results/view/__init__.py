"""One self-contained HTML page of scored rows or of a run: no network, no framework, model output as plain text."""
