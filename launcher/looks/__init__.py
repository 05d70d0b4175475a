"""Looking after runs: tables, logs, cancelling, cleaning."""
