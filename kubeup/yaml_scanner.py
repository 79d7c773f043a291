"""PyYAML's scanner, changed where Go's reads differently. Imported when the first text is read, together with
PyYAML."""

from __future__ import annotations

import importlib
import re
from typing import Any, NoReturn

yaml: Any = importlib.import_module("yaml")
"""Untyped, because its type stubs do not cover the parts of a scanner."""
SURROGATE = re.compile("[\ud800-\udfff]")
_BREAKS = "\r\n\x85\u2028\u2029"
_BLANKS = "\0 \t" + _BREAKS


class TabScanner(yaml.scanner.Scanner):  # type: ignore[misc, name-defined, unused-ignore]
    """Accepts tabs between tokens and inside plain scalars, but not as indentation, and everything else that Go
    accepts."""

    buffer: str
    pointer: int
    ESCAPE_REPLACEMENTS = {**yaml.scanner.Scanner.ESCAPE_REPLACEMENTS, "'": "'"}  # noqa: RUF012

    def need_more_tokens(self) -> bool:
        """The same as PyYAML's, without iterating over no keys at every token."""
        if self.tokens and not self.possible_simple_keys:
            return False
        return bool(super().need_more_tokens())

    def scan_to_next_token(self) -> None:
        super().scan_to_next_token()
        while self.peek() == "\t" and (self.flow_level or not self.allow_simple_key):
            while self.peek() == "\t":
                self.forward()
            super().scan_to_next_token()

    def scan_plain_spaces(self, indent: int, start_mark: Any) -> Any:
        if self.peek() in ",:]}#":  # the most common case
            return []
        length = 0
        while self.peek(length) in " \t":
            length += 1
        spaces = self.prefix(length)
        self.forward(length)
        if self.peek() not in _BREAKS:
            return [spaces] if spaces else []
        first = self.scan_line_break()
        self.allow_simple_key = True
        more: list[str] = []
        while not self.is_at_marker():
            if self.peek() == " " or (self.peek() == "\t" and self.column >= indent):
                self.forward()
            elif self.peek() in _BREAKS:
                more.append(self.scan_line_break())
            else:
                return [*([first] if first != "\n" else [] if more else [" "]), *more]
        return None

    def scan_plain(self) -> Any:
        """Inside brackets a colon ends a text only before a blank: `[a:]` contains the text `a:`."""
        chunks: list[str] = []
        start_mark = end_mark = self.get_mark()
        indent = self.indent + 1
        spaces: list[str] = []
        ends = ",?[]{}" if self.flow_level else ""
        while self.peek() != "#":
            length = 0
            while True:
                sign = self.peek(length)
                if sign in _BLANKS or sign in ends or (sign == ":" and self.peek(length + 1) in _BLANKS):
                    break
                length += 1
            if length == 0:
                break
            self.allow_simple_key = False
            chunks += [*spaces, self.prefix(length)]
            self.forward(length)
            end_mark = self.get_mark()
            spaces = self.scan_plain_spaces(indent, start_mark)
            if not spaces or (not self.flow_level and self.column < indent):
                break
        return yaml.tokens.ScalarToken("".join(chunks), True, start_mark, end_mark)

    def scan_flow_scalar(self, style: str) -> Any:
        token = super().scan_flow_scalar(style)
        if not token.value.isascii() and SURROGATE.search(token.value):
            self.fail_at("half a Unicode character (a lone surrogate)")
        return token

    def scan_tag(self) -> Any:
        """A tab may end a tag."""
        end = self.pointer
        while self.buffer[end] not in _BLANKS:
            end += 1
        if self.buffer[end] == "\t":
            self.buffer = f"{self.buffer[:end]} {self.buffer[end + 1 :]}"
        return super().scan_tag()

    def scan_directive(self, start_mark: Any = None) -> Any:
        token = super().scan_directive()
        if token.name not in ("YAML", "TAG"):
            self.fail_at("found unknown directive name")
        return token

    def scan_block_scalar_indicators(self, start_mark: Any) -> Any:
        chomping, increment = None, None
        for _ in range(2):
            if chomping is None and self.peek() in "+-":
                chomping = self.peek() == "+"
            elif increment is None and self.peek() in "0123456789":
                increment = int(self.peek()) or self.fail_at("found an indentation indicator equal to 0")
            else:
                break
            self.forward()
        return chomping, increment

    def scan_block_scalar_ignored_line(self, start_mark: Any) -> None:
        while self.peek() in " \t":
            self.forward()
        super().scan_block_scalar_ignored_line(start_mark)

    def scan_block_scalar_indentation(self) -> Any:
        found = super().scan_block_scalar_indentation()
        if self.peek() == "\t":
            self.fail_at("found a tab character where an indentation space is expected")
        return found

    def scan_block_scalar_breaks(self, indent: int) -> Any:
        found = super().scan_block_scalar_breaks(indent)
        if self.peek() == "\t" and self.column < indent:
            self.fail_at("found a tab character where an indentation space is expected")
        return found

    def fail_at(self, problem: str) -> NoReturn:
        raise yaml.scanner.ScannerError(None, None, problem, self.get_mark())

    def is_at_marker(self) -> bool:
        return self.column == 0 and self.prefix(3) in ("---", "...") and self.peek(3) in f"\0 \t{_BREAKS}"


class GoParser(yaml.reader.Reader, TabScanner, yaml.parser.Parser):  # type: ignore[misc, name-defined, unused-ignore]
    """Yields the events of a text."""

    def __init__(self, text: str) -> None:
        yaml.reader.Reader.__init__(self, text)
        TabScanner.__init__(self)
        if not text.lstrip().startswith("{"):  # `\\/` is JSON: Go's readers accept it only in JSON files
            self.ESCAPE_REPLACEMENTS = {key: value for key, value in self.ESCAPE_REPLACEMENTS.items() if key != "/"}
        yaml.parser.Parser.__init__(self)
