"""The executor: takes tasks from the SuperNode and runs them in a process with an approved bundle."""
