"""Checks of the settings across sections: what one section cannot know of the others."""
