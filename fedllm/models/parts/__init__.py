"""What is found out about a frozen model before it is trained: its attention layers, its files, its kind."""
