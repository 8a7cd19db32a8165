"""Something to import from deep down."""

ANSWER = 42
