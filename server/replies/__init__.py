"""Parse every node's reply in one place: into a typed value, or a refusal that names the field.

A node is not trusted: it may answer anything at all. Nothing else of the server looks into a node's message.
"""

from server.replies.refusal import ReplyRefused
from server.replies.sorting import Item, Replies, RunStopped, sort_replies

__all__ = ["Item", "Replies", "ReplyRefused", "RunStopped", "sort_replies"]
