"""Bases of the models of ``report.json``."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

Real = float | Literal["Infinity", "-Infinity", "NaN"]
"""A number; what JSON has no number for is a text, as in protobuf's JSON mapping."""


class Part(BaseModel):
    """Base of all parts: other keys are refused."""

    model_config = ConfigDict(extra="forbid")


class TitledPart(Part):
    """A text with its title."""

    title: str
    text: str
