"""Read, override, check and write :class:`~fedllm.settings.experiment.Settings` (TOML)."""

from __future__ import annotations

import difflib
import json
import os
import tomllib
from collections.abc import Iterable, Mapping
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, get_args, get_origin

import tomli_w
from pydantic import BaseModel, ValidationError

from fedllm.files.bounded_json import TooLarge, read_bounded, shortened
from fedllm.settings.checks.black_box import noises_numbers
from fedllm.settings.experiment import Settings
from fedllm.settings.removed import refusals, without_removed

_TOLD = 20
"""Unknown keys that a message names at most."""


class SettingsError(ValueError):
    """A setting is unknown, of the wrong kind, or out of range; the message names it."""


def load_settings(path: str | Path, overrides: Iterable[str] = ()) -> Settings:
    """Read an experiment's TOML file, apply ``section.key=value`` overrides, and check it.

    Relative ``data.path``, ``public.path``, ``privacy.noise`` and ``task.template`` are taken relative to the file;
    ``~`` and ``$VARIABLES`` are expanded. The files of noise and template are read here, so that the settings hold what
    they say.

    Args:
        path: the TOML file.
        overrides: for instance ``["privacy.epsilon=3", "prefix.layers=[0, 1]"]``; values are TOML,
            and a value that is no TOML is text.

    Raises:
        SettingsError: the file is missing or no TOML, or a key or value is not accepted.

    Example:
        >>> settings = fedllm.load_settings("simulations/experiments/tweets.toml", ["privacy.epsilon=8"])
        >>> settings.privacy.epsilon
        8.0
    """
    file = Path(path)
    try:
        tree = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingsError(f"Expected an experiment's TOML file, found no file {file}") from None
    except IsADirectoryError:
        raise SettingsError(f"Expected an experiment's TOML file, got the folder {file}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{file} is not valid TOML: {error}") from None
    apply_overrides(tree, overrides)
    return settings_of(tree, source=str(file), folder=file.resolve().parent)


def settings_of(tree: Mapping[str, Any], source: str, folder: Path) -> Settings:
    """Check a tree of plain values as :func:`load_settings` does a file's.

    Args:
        source: goes before what is wrong.
        folder: what relative paths start from.

    Raises:
        SettingsError: as :func:`parse_settings`.
    """
    return _with_paths(parse_settings(tree, source=source), folder)


def parse_settings(tree: Mapping[str, Any], source: str = "settings") -> Settings:
    """Check a tree of plain values.

    Raises:
        SettingsError: one line a problem; an unknown key comes with the nearest known one, a removed one
            with what replaces it.
    """
    wrong = refusals(tree)
    wrong += islice(_unknown_keys(without_removed(tree), Settings, ()), _TOLD)
    if wrong:
        raise SettingsError("\n".join(f"{source}: {problem}" for problem in wrong))
    try:
        return Settings.model_validate(_read_none(tree))
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            key = ".".join(str(part) for part in problem["loc"] if not _is_branch(part))
            message = problem["msg"].removeprefix("Value error, ")
            if problem["type"] == "value_error":
                lines.append(f"{source}: {message}")
            else:
                got = shortened(problem["input"], 200)
                lines.append(f"{source}: Expected {key}: {message}; got {got}")
        raise SettingsError("\n".join(dict.fromkeys(lines))) from None


def parse_recorded(tree: Mapping[str, Any], source: str) -> Settings:
    """Check the settings of a run that was made before, maybe by an earlier version, for reading.

    Settings that were removed since have their default (:func:`fedllm.settings.removed.removed_of` names
    those that the run used).

    Raises:
        SettingsError: as :func:`parse_settings`.
    """
    return parse_settings(without_removed(_with_proven_relation(tree)), source)


def _with_proven_relation(tree: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the settings of a run of an earlier version, with the relation that it proves.

    They name add-or-remove-one, the default then, whatever the sizes. Where those are public, or the unit is
    the client, what the run proves is zero-out, with the same numbers. For reading what was done: a new run's
    settings are refused instead (:func:`fedllm.settings.checks.sections.check_relation`).
    """
    privacy, data = tree.get("privacy"), tree.get("data")
    if not isinstance(privacy, Mapping) or privacy.get("relation") != "add-or-remove-one":
        return tree
    private = isinstance(data, Mapping) and data.get("sizes") == "private"
    if private and privacy.get("unit", "example") == "example":
        return tree
    return {**tree, "privacy": {**privacy, "relation": "zero-out"}}


def apply_overrides(tree: dict[str, Any], overrides: Iterable[str]) -> None:
    """Set ``section.key=value`` in ``tree``, in place.

    Raises:
        SettingsError: no ``=``, or a key below something that is no section.
    """
    for text in overrides:
        name, sign, raw = text.partition("=")
        parts = _key_parts(name.strip())
        if not sign or not all(parts):
            raise SettingsError(f"Expected section.key=value in an override, got {text!r}")
        try:
            value = tomllib.loads(f"value = {raw.strip()}")["value"]
        except tomllib.TOMLDecodeError:
            value = raw.strip()
        node = tree
        for part in parts[:-1]:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                raise SettingsError(f"Expected a section at {part!r} in the override {text!r}")
        node[parts[-1]] = value


def _key_parts(name: str) -> list[str]:
    """Return the parts of a dotted key; a part may be quoted (``privacy.silos."US Airways".epsilon``)."""
    try:
        node: Any = tomllib.loads(f"{name} = 0")
    except tomllib.TOMLDecodeError:
        return [part.strip() for part in name.split(".")]
    parts = []
    while isinstance(node, dict):
        ((part, node),) = node.items()
        parts.append(part)
    return parts


def to_toml(settings: Settings, *, documented: bool = False) -> str:
    """Write the whole tree as TOML; keys without a value are left out (or commented out).

    With ``documented`` each key carries its description as a comment.
    """
    if not documented:
        return tomli_w.dumps(_plain(settings))
    lines: list[str] = []
    for key, field in type(settings).model_fields.items():
        value = getattr(settings, key)
        if not isinstance(value, BaseModel):
            lines += [f"# {field.description}", tomli_w.dumps({key: value}).strip(), ""]
    for key in type(settings).model_fields:
        section = getattr(settings, key)
        if not isinstance(section, BaseModel):
            continue
        summary = (type(section).__doc__ or "").strip().splitlines()[0]
        lines += [f"# {summary}", f"[{key}]"]
        tables: list[str] = []
        for name, field in type(section).model_fields.items():
            value = section.model_dump(mode="json")[name]
            if isinstance(value, dict) and value:  # tables come after all keys of their section
                tables += [f"# {field.description}", tomli_w.dumps({key: {name: _clean(value)}})]
                continue
            lines.append(f"# {field.description}")
            if isinstance(value, dict):
                lines.append(f"# {name} = {{}}")
            elif value is None and _default_is_not_none([key, name]):
                lines.append(f'{name} = "none"')
            elif value is None:
                lines.append(f"# {name} =")
            else:
                lines.append(tomli_w.dumps({name: value}).strip())
        lines += ["", *tables]
    return "\n".join(lines)


def to_json(settings: Settings) -> str:
    """Return the tree as canonical JSON (sorted keys): what travels in messages and is hashed."""
    return json.dumps(settings.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))


@lru_cache(maxsize=16)
def from_json(text: str) -> Settings:
    """Return the inverse of :func:`to_json`, of a text that anybody may have written.

    Equal texts are checked once; a text that differs in any character is another one.

    Raises:
        SettingsError: as :func:`parse_settings`, or the text is beyond :class:`fedllm.files.bounded_json.Bounds`.
    """
    try:
        tree = read_bounded(text, "settings in a message")
    except TooLarge as error:
        raise SettingsError(str(error)) from None
    if not isinstance(tree, dict):
        raise SettingsError(f"Expected settings in a message, got {shortened(tree)}")
    return parse_settings(tree, source="settings in a message")


def _plain(settings: Settings) -> dict[str, Any]:
    plain = settings.model_dump(mode="json")
    cleaned = _clean(plain)
    # A key whose default is not "none" but whose value is: TOML has no null, so write "none".
    for section, values in plain.items():
        if isinstance(values, dict):
            for key, value in values.items():
                if value is None and _default_is_not_none([section, key]):
                    cleaned[section][key] = "none"
    return dict(cleaned)


def _clean(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _clean(v) for k, v in value.items() if v is not None}
    return value


def _read_none(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return TOML has no null: the text "none" stands for it where the setting may be empty."""

    def allows_none(section: str, key: str) -> bool:
        default = Settings.model_fields[section].default
        field = type(default).model_fields[key] if isinstance(default, BaseModel) else None
        return field is not None and type(None) in getattr(field.annotation, "__args__", ())

    return {
        name: {
            key: None if value == "none" and allows_none(name, key) else value
            for key, value in section.items()
        }
        if isinstance(section, Mapping)
        else section
        for name, section in tree.items()
    }


def _default_is_not_none(parts: list[str]) -> bool:
    if len(parts) != 2 or parts[0] not in Settings.model_fields:
        return False
    section = Settings.model_fields[parts[0]].default
    field = type(section).model_fields.get(parts[1]) if isinstance(section, BaseModel) else None
    return field is not None and getattr(section, parts[1]) is not None


def _is_branch(part: object) -> bool:
    return isinstance(part, str) and ("[" in part or part.startswith("literal"))


def _unknown_keys(
    tree: Mapping[str, Any], model: type[BaseModel], above: tuple[str, ...]
) -> Iterable[str]:
    for key, value in tree.items():
        name = ".".join((*above, key))
        if key not in model.model_fields:
            near = difflib.get_close_matches(key, model.model_fields, n=1, cutoff=0.5)
            home = [
                f"{section}.{key}"
                for section, field in Settings.model_fields.items()
                if isinstance(field.default, BaseModel) and key in type(field.default).model_fields
            ]
            if home:
                hint = f"did you mean {' or '.join(home)}?"
            elif near:
                hint = f"did you mean {'.'.join((*above, near[0]))}?"
            else:
                hint = f"known here: {', '.join(model.model_fields)}"
            yield f"Expected a known key, got {name}; {hint}"
            continue
        inner = model.model_fields[key].annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            if isinstance(value, Mapping):
                yield from _unknown_keys(value, inner, (*above, key))
            else:
                yield f"Expected the section [{name}], got {name}={shortened(value)}"
        elif get_origin(inner) is dict:
            if not isinstance(value, Mapping):
                yield f'Expected tables [{name}."NAME"], got {name}={shortened(value)}'
                continue
            kinds = [arg for arg in get_args(inner) if isinstance(arg, type) and arg is not str]
            for entry, own in value.items() if kinds else ():
                (kind,) = kinds
                if isinstance(own, Mapping):
                    yield from _unknown_keys(own, kind, (*above, key, entry))
                else:
                    yield f'Expected a table [{name}."{entry}"], got {shortened(own)}'


def _with_paths(settings: Settings, base: Path) -> Settings:
    """Return ``data.path`` and ``public.path`` made absolute, where they name files; ``privacy.noise`` read."""
    changed: dict[str, BaseModel] = {}
    named = settings.privacy.noise
    if named is not None and not named.lstrip().startswith("{"):
        from fedllm.training.noise import noise_text

        file = base / Path(os.path.expandvars(os.path.expanduser(named)))
        try:
            text = noise_text(file, numbers=noises_numbers(settings))
        except ValueError as error:
            raise SettingsError(str(error)) from None
        changed["privacy"] = settings.privacy.model_copy(update={"noise": text})
    template = settings.task.template
    if template is not None and "{" not in template:
        text = _template_text(template, base)
        changed["task"] = settings.task.model_copy(update={"template": text})
    for name, section in (("data", settings.data), ("public", settings.public)):
        path = section.path
        if path is not None and section.source == "files":
            expanded = Path(os.path.expandvars(os.path.expanduser(path)))
            if not expanded.is_absolute():
                expanded = (base / expanded).resolve()
            changed[name] = section.model_copy(update={"path": str(expanded)})
    return settings.model_copy(update=changed)


def _template_text(named: str, base: Path) -> str:
    """Return the chat template in a file; a template in place of a file's name has braces."""
    file = base / Path(os.path.expandvars(os.path.expanduser(named)))
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise SettingsError(
            f"Expected a chat template (Jinja, with braces) or a file with one in task.template, got {named!r}: {error}"
        ) from None
    if "{" not in text:
        raise SettingsError(
            f"Expected a chat template (Jinja, with braces) in task.template={named}, got none"
        )
    return text
