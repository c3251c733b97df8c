"""The command line: one function per verb, thin; each verb calls the Python function that does the work."""
