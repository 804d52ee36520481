"""The command line ``fedllm``: one module a command."""
