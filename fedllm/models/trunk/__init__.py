"""The frozen layers below the lowest one that is trained: their states are computed once an example and kept."""
