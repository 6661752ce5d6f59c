"""The REPL: the interactive front end on prompt_toolkit."""
