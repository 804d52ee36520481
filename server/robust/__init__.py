"""What a server does about silos that are hostile: limits of honest updates, and means that bear some others."""
