"""The command line: `opticus VERB WORDS key=value`. Parsing and --help need no torch; verbs import what they use."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import sys
from collections.abc import Sequence
from typing import Any, Literal, get_args, get_origin, get_type_hints

from opticus.structures.errors import Error, UnknownNameError, UsageError

OK, FINDINGS, USAGE, FAILURE, INTERRUPTED = 0, 1, 2, 3, 130
SETTINGS = (
    *("epochs", "steps", "batch", "lr", "weight_decay", "clip", "kind", "average", "seed", "workers", "precision", "device"),
    *("accumulate", "patience", "evaluate_every", "save_every", "log_every", "metric", "weights"),
    *("freeze", "unfreeze", "layer_decay", "teacher", "distill", "temperature", "share"),
)  # the common ones, known here without importing torch
FAULT = "a fault of opticus itself"


def main(words: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 ok, 1 findings, 2 usage, 3 failure, 130 interrupted."""
    arguments = list(sys.argv[1:] if words is None else words)
    debug = "--debug" in arguments or "debug=true" in arguments
    try:
        code = _dispatch([word for word in arguments if word not in ("--debug", "debug=true")])
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("opticus: interrupted; what was written is valid", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader went away; nothing more to say
        return OK
    except Error as error:
        if debug:
            raise
        print(f"opticus: {error}", file=sys.stderr)
        return error.exit_code
    except (OSError, MemoryError, RuntimeError) as error:
        if debug:
            raise
        print(f"opticus: {_sentence(error)}", file=sys.stderr)
        return FAILURE
    except Exception as error:
        if debug:
            raise
        print(f"opticus: {FAULT}: {type(error).__name__}: {error}; --debug shows where", file=sys.stderr)
        return FAILURE


def _sentence(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'} (use --debug for the traceback)"


def _dispatch(words: list[str]) -> int:
    from opticus.cli.commands import COMMANDS  # dataclasses only

    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview(COMMANDS))
        return OK
    if words[0] in ("-V", "--version", "version"):
        from opticus import __version__

        print(f"opticus {__version__}")
        return OK
    name, rest = words[0], words[1:]
    if name not in COMMANDS:
        raise UnknownNameError("verb", name, COMMANDS)
    command = COMMANDS[name]
    if any(word in ("-h", "--help") for word in rest):
        _help(name, command)
        return OK
    call = parse(name, command, rest)
    return call.run()


def _overview(commands: dict[str, Any]) -> str:
    lines = ["usage: opticus VERB WORDS key=value ...   (--key value works too; opticus VERB --help)", ""]
    lines += [f"  {name:<15}{(command.__doc__ or '').strip().splitlines()[0]}" for name, command in commands.items()]
    lines += ["", "every verb: --json prints JSON on stdout, --debug shows tracebacks", ""]
    lines += ["exit codes: 0 ok, 1 findings, 2 usage, 3 failure"]
    return "\n".join(lines)


def _help(name: str, command: Any) -> None:
    import tyro

    words = [field.name.upper() for field in dataclasses.fields(command) if field.metadata.get("word")]
    print(" ".join(["usage: opticus", name, *words, "[key=value | --key value ...]"]), end="\n\n")
    text = io.StringIO()
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(text):
        tyro.cli(command, prog=f"opticus {name}", args=["--help"])
    _, _, rest = text.getvalue().partition("\n\n")  # its own usage line knows no words and no key=value
    print(rest.rstrip())
    if "more" in {field.name for field in dataclasses.fields(command)}:
        print(f"\nother keys, of the recipe: {', '.join(SETTINGS)}; and the settings of MODEL")


def parse(name: str, command: Any, words: Sequence[str]) -> Any:
    """The command's dataclass from words, `key=value` and `--key value`; UsageError names the word that does not fit.

    Commands with a field `more` collect keys that they do not know there; the verb itself checks those.
    """
    import tyro

    fields = {field.name: field for field in dataclasses.fields(command)}
    hints = get_type_hints(command)
    positional, keyed = _sorted(name, words, hints, open_ended="more" in fields)
    slots = [n for n, f in fields.items() if f.metadata.get("word")]
    many = next((n for n in slots if _is_tuple(hints[n])), None)
    if "" in positional:
        raise UsageError(f"opticus {name}: a word is empty")
    if many is None and len(positional) > len(slots):
        raise UsageError(f"opticus {name} takes {_count(slots)}, found {len(positional)}: {' '.join(positional)}")
    named = {slot: [word] for slot, word in zip(slots, positional)} if many is None else {}
    if many is not None:
        before = slots.index(many)
        named = {slot: [word] for slot, word in zip(slots[:before], positional)}
        named[many] = positional[before:]
    more = {key: value for key, value in keyed.items() if key not in fields}
    named |= {key: [value] for key, value in keyed.items() if key in fields}
    missing = [s for s in slots if fields[s].default is dataclasses.MISSING and not named.get(s)]
    if missing:
        raise UsageError(f"opticus {name} needs {' and '.join(m.upper() for m in missing)}; see opticus {name} --help")
    values = {key: _value(name, key, value, hints[key], tyro) for key, value in named.items() if value}
    if more:
        values["more"] = {key: literal(value) for key, value in more.items()}
    return command(**values)


def _count(slots: list[str]) -> str:
    return "no words" if not slots else f"{len(slots)} word{'s' if len(slots) > 1 else ''} ({', '.join(s.upper() for s in slots)})"


def _is_tuple(hint: Any) -> bool:
    return get_origin(hint) is tuple


def _sorted(name: str, words: Sequence[str], hints: dict[str, Any], open_ended: bool) -> tuple[list[str], dict[str, str]]:
    """Plain words in order, and key -> text."""
    positional: list[str] = []
    keyed: dict[str, str] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        dashed = word.startswith("--") and len(word) > 2
        key, equals, text = word.removeprefix("--").partition("=")
        key = key.replace("-", "_")
        if not dashed and not (equals and key.isidentifier()):
            positional.append(word)
            continue
        negated = key.removeprefix("no_")
        if not equals and key not in hints and negated in hints and hints[negated] is bool:
            key, text = negated, "false"
        elif not equals and hints.get(key) is bool:
            text = "true"
        elif not equals:
            if not rest or rest[0].startswith("--"):
                _known(name, key, hints, open_ended)
                raise UsageError(f"opticus {name}: {word} needs a value")
            text = rest.pop(0)
        _known(name, key, hints, open_ended)
        if not text:
            raise UsageError(f"opticus {name}: {key} needs a value")
        if key in keyed:
            raise UsageError(f"opticus {name}: {key} is given twice")
        keyed[key] = text
    return positional, keyed


def _known(name: str, key: str, hints: dict[str, Any], open_ended: bool) -> None:
    if key not in hints and not open_ended:
        raise UnknownNameError(f"key of opticus {name}", key, [k for k in hints if k != "more"])


def _value(name: str, key: str, texts: list[str], hint: Any, tyro: Any) -> Any:
    """One field's value, converted by tyro under the field's own type."""
    if hint is bool:
        if texts[0].lower() not in ("true", "false", "1", "0", "yes", "no"):
            raise UsageError(f"opticus {name}: {key} must be true or false, found {texts[0]!r}")
        return texts[0].lower() in ("true", "1", "yes")
    plain = [h for h in get_args(hint) if h is not type(None)] if type(None) in get_args(hint) else [hint]
    if plain == [str] or hint is str:
        return texts[0]
    if _is_tuple(plain[0]) and len(texts) == 1 and get_args(plain[0]):
        texts = texts[0].split(",")
    if _is_tuple(plain[0]) and get_args(plain[0])[0] is str:
        return tuple(texts)
    options = get_args(plain[0]) if get_origin(plain[0]) is Literal else ()
    if options and texts[0] not in options:
        raise UnknownNameError(f"value of opticus {name}'s {key}", texts[0], options)
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # its box of text becomes one sentence below
            return tyro.cli(plain[0], args=texts, console_outputs=False)
    except SystemExit as stop:
        kind = {int: "a whole number", float: "a number"}.get(plain[0], f"of type {plain[0]}")
        raise UsageError(f"opticus {name}: {key} must be {kind}, found {' '.join(texts)!r}") from stop


def literal(text: str) -> Any:
    """A value of an open-ended key: JSON where it reads as JSON (numbers, true, lists), else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return {"True": True, "False": False, "None": None}.get(text, text)


if __name__ == "__main__":
    sys.exit(main())
