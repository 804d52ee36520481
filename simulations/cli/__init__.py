"""The command line ``fedllm``: one file a command, imported when the command is called.

At its top a command's file imports only the standard library, Typer and rich; torch, Flower and what else takes
seconds to load are imported within the command's function. ``fedllm --help`` is therefore immediate.
"""
