"""A cell's output area: order, caps, updates and what is left of them where a front end knows none."""

from __future__ import annotations

from dataclasses import dataclass, field

from magics.display import Bundle
from magics.output import HeldArea, LiveArea, Name, OutputStreams


@dataclass
class Told:
    """Remembers what would be shown."""

    shown: list[object] = field(default_factory=list)

    def write(self, name: Name, text: str) -> None:
        self.shown.append((name, text))

    def flush(self, name: Name) -> None:
        """Nothing is kept back."""

    def show(self, data: Bundle, metadata: Bundle, display_id: str | None = None, *, update: bool = False) -> None:
        self.shown.append((data["text/plain"], display_id, update))

    def clear(self, *, wait: bool) -> None:
        self.shown.append("cleared")

    def close(self) -> None:
        self.shown.append("closed")


def _bundle(text: str) -> Bundle:
    return {"text/plain": text}


def test_characters_cut_in_two_and_broken_bytes_are_shown() -> None:
    told = Told()
    streams = OutputStreams(told)
    for piece in ("ä".encode()[:1], "ä".encode()[1:], b"\xff", "€".encode()[:2]):
        streams.write("stdout", piece)
    streams.close()
    assert "".join(text for _, text in told.shown) == "ä��"  # type: ignore[misc]


def test_one_very_long_line_is_capped_in_the_middle_and_its_end_shown() -> None:
    told = Told()
    streams = OutputStreams(told, limit=100, tail=10)
    for _ in range(1000):
        streams.write("stdout", b"x" * 1000)
    streams.write("stdout", b"the end")
    streams.close()
    text = "".join(text for _, text in told.shown)  # type: ignore[misc]
    assert text.startswith("x" * 100 + "\n… 1.0 MB more …\n")
    assert text.endswith("the end")
    assert len(text) < 2000


def test_clearing_gives_room_again() -> None:
    told = Told()
    streams = OutputStreams(told, limit=4)
    streams.write("stdout", b"123456")
    streams.clear(wait=True)
    streams.write("stdout", b"abcd")
    streams.close()
    assert told.shown == [("stdout", "1234"), "cleared", ("stdout", "abcd")]


def test_kept_streams_are_not_shown() -> None:
    told = Told()
    streams = OutputStreams(told, keep=frozenset(("stderr",)))
    streams.write("stderr", b"\xffkept")
    streams.close()
    assert (told.shown, streams.text("stderr")) == ([], "�kept")


def test_of_quick_updates_the_first_and_the_last_are_shown() -> None:
    shown: list[tuple[str, str | None, bool]] = []
    live = LiveArea(lambda data, _, display_id, update: shown.append((data["text/plain"], display_id, update)), lambda _: None)
    live.show(_bundle("0"), {}, "a")
    for number in range(1, 1000):
        live.show(_bundle(str(number)), {}, "a", update=True)
    live.close()
    assert shown[0] == ("0", "a", False)
    assert shown[-1] == ("999", "a", True)
    assert len(shown) < 500


def test_output_is_shown_at_once_until_there_is_a_display_that_may_change() -> None:
    told = Told()
    held = HeldArea(told)
    held.write("stdout", "gone")
    held.show(_bundle("plain"), {})
    held.clear(wait=False)
    assert told.shown == [("stdout", "gone"), ("plain", None, False), "cleared"]
    held.write("stdout", "stays")
    held.show(_bundle("first"), {}, "a")
    held.write("stdout", "after")
    held.show(_bundle("other"), {})
    held.show(_bundle("last"), {}, "a", update=True)
    assert told.shown[3:] == [("stdout", "stays")]
    held.close()
    assert told.shown[4:] == [("last", None, False), ("stdout", "after"), ("other", None, False)]


def test_what_was_held_is_cleared_too() -> None:
    told = Told()
    held = HeldArea(told)
    held.show(_bundle("first"), {}, "a")
    held.clear(wait=True)
    held.write("stdout", "new")
    held.close()
    assert told.shown == ["cleared", ("stdout", "new")]


def test_of_a_cell_that_may_clear_only_the_end_is_shown() -> None:
    told = Told()
    held = HeldArea(told, may_clear=True)
    held.write("stdout", "gone")
    held.show(_bundle("gone"), {})
    held.clear(wait=False)
    held.write("stdout", "stays")
    held.show(_bundle("too"), {})
    assert told.shown == []
    held.close()
    assert told.shown == [("stdout", "stays"), ("too", None, False)]
