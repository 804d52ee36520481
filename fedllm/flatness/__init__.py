"""Privacy-Flat (arXiv 2403.04124): flatness within a layer, across layers, across models; measured."""
