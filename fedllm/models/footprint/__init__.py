"""Less memory for a frozen model: layers computed again, quantised weights, more than one device."""
