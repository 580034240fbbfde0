"""Markdown in, harmless HTML out, whatever comes in and however long it is."""

import time
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labeling import rendering
from labeling.rendering import MARKDOWN_LIMIT, render_guidelines, render_markdown
from tests.labeling.hostile import HOSTILE

ALLOWED_ATTRIBUTES = {
    "a": {"href", "title", "target", "rel"},
    "span": {"class"},
    "div": {"class", "tabindex"},
    "ol": {"start"},
    "pre": {"tabindex"},
}


class Seen(HTMLParser):
    """What a browser would find: tags, attributes, text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


def is_harmless(html: str) -> bool:
    seen = Seen(html)
    if not seen.tags <= rendering._TAGS | {"div"}:
        return False
    return all(
        name in ALLOWED_ATTRIBUTES.get(tag, set())
        and (name != "href" or value.lower().startswith(("http://", "https://", "mailto:")))
        for tag, name, value in seen.attributes
    )


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_becomes_harmless(text: str) -> None:
    assert is_harmless(render_markdown(text))


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_harmless_after_innocent_text_and_in_a_list(text: str) -> None:
    assert is_harmless(render_markdown(f"Once upon a time.\n\n- one\n- {text}\n\n> {text}\n"))


def test_the_check_itself_sees_harm() -> None:
    assert not is_harmless("<p onclick=x>y</p>")
    assert not is_harmless("<script>x</script>")
    assert not is_harmless('<a href="javascript:x">y</a>')
    assert not is_harmless('<p hx-get="/x">y</p>')
    assert not is_harmless('<a href="/logout/">y</a>')


@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=300))
@settings(max_examples=300, deadline=None)
def test_any_text_is_harmless(text: str) -> None:
    assert is_harmless(render_markdown(text))


@given(
    st.lists(
        st.sampled_from([*"<>&\"'`*_[]()#|-:!~\\\n\t =/", "a", "on", "hx-get", "script", "1."]), max_size=60
    )
)
@settings(max_examples=500, deadline=None)
def test_any_pile_of_markup_is_harmless(pieces: list[str]) -> None:
    assert is_harmless(render_markdown("".join(pieces)))


def test_plain_words_take_the_short_way_and_look_the_same() -> None:
    text = 'Once upon a time there was a fox.\nIt said: "Hello" - and left.\n\n3 days later, it came back!'
    assert rendering._PLAIN.fullmatch(text)
    assert render_markdown(text) == rendering._sanitised(rendering._markdown().render(text))


WORDS = st.text(alphabet="ab 1.,;:!?'\"()-–+=\n é中", max_size=80)


@given(WORDS)
@settings(max_examples=500, deadline=None)
def test_the_short_way_gives_what_the_long_way_gives(text: str) -> None:
    if rendering._PLAIN.fullmatch(text):
        assert render_markdown(text) == rendering._sanitised(rendering._markdown().render(text))


def test_markdown_renders() -> None:
    html = render_markdown("# Title\n\n**bold** and `code`\n\n1. one\n2. two\n\n> quoted\n\n~~gone~~")
    for piece in (
        "<h1>Title</h1>",
        "<strong>bold</strong>",
        "<code>code</code>",
        "<ol>",
        "<blockquote>",
        "<s>",
    ):
        assert piece in html


def test_tables_render() -> None:
    html = render_markdown("| a | b |\n|---|--:|\n| 1 | 2 |\n")
    assert "<table>" in html and "<th>a</th>" in html and "<td>2</td>" in html and "style" not in html


def test_code_keeps_its_indentation_and_gets_classes() -> None:
    html = render_markdown("```python\ndef f(x):\n    if x:\n\treturn x\n```\n")
    assert Seen(html).text.strip() == "def f(x):\n    if x:\n\treturn x"
    assert '<span class="k">def</span>' in html


def test_code_in_an_unknown_language_stays_as_it_is() -> None:
    assert '<pre tabindex="0"><code>  a &lt; b\n</code></pre>' in render_markdown("```klingon\n  a < b\n```")


def test_line_breaks_are_kept() -> None:
    assert render_markdown("roses\nviolets") == "<p>roses<br>\nviolets</p>\n"


def test_images_become_links_and_never_load() -> None:
    assert "<img" not in render_markdown("![cat](https://example.org/cat.png)")


def test_links_say_nothing_about_where_they_were_clicked() -> None:
    html = render_markdown("[x](https://example.org/)")
    assert 'rel="noopener noreferrer nofollow"' in html and 'target="_blank"' in html


def test_control_characters_become_visible() -> None:
    assert render_markdown("a\0b\x1bc\x7f") == "<p>a␀b␛c␡</p>\n"
    assert render_markdown("half \ud800 pair") == "<p>half \ufffd pair</p>\n"


def test_text_cannot_be_turned_around_unseen_and_a_flag_stays_a_flag() -> None:
    """Trojan Source, CVE-2021-42574."""
    assert render_markdown("a \u202eevil\u202c b") == "<p>a \ufffdevil\ufffd b</p>\n"
    wales = "\U0001f3f4\U000e0067\U000e0062\U000e0077\U000e006c\U000e0073\U000e007f"
    assert render_markdown(f"{wales} \U000e0068") == f"<p>{wales} \ufffd</p>\n"


@pytest.mark.parametrize("link", ["[x](/logout/)", "[x](javascript:y)", "[x](#task)"])
def test_a_link_that_leads_nowhere_is_shown_as_it_was_written(link: str) -> None:
    html = render_markdown(f"see {link}")
    assert "<a" not in html and Seen(html).text.strip() == f"see {link}"


def test_nothing_that_was_written_is_hidden() -> None:
    """Definitions of links and deep nesting vanish in markdown; a rater must see them."""
    for text in ("[a]: https://e.example/hidden", ">" * 60 + " hidden", "- " * 80 + "hidden"):
        assert "hidden" in Seen(render_markdown(text)).text


@pytest.mark.parametrize(
    "text",
    [
        "word " * 200_000,
        "x" * 1_000_000,
        "<" * 1_000_000,
        "*" * 1_000_000,
        "[" * (MARKDOWN_LIMIT - 1),
        "![" * (MARKDOWN_LIMIT // 2 - 1),
        "*a " * (MARKDOWN_LIMIT // 3 - 1) + "c*",
        ">" * (MARKDOWN_LIMIT - 1),
        "- " * (MARKDOWN_LIMIT // 2 - 1),
        "```c\n" + '"\\' * 4_900 + "\n```",
        "a\n" * (MARKDOWN_LIMIT // 2 - 1) + "<",
    ],
    ids=lambda text: f"{text[:6]!r} x {len(text)}",
)
def test_a_huge_text_neither_hangs_nor_overflows(text: str) -> None:
    began = time.process_time()
    html = render_markdown(text)
    assert time.process_time() - began < 8
    assert is_harmless(html)
    assert len(html) < 8 * len(text) + 200


def test_a_long_text_is_shown_whole_and_as_it_is() -> None:
    text = "**not bold** <b>\n" * 5_000
    html = render_markdown(text)
    assert html.startswith('<div class="plain"') and Seen(html).text.strip() == text.strip()


def test_guidelines_are_rendered_once() -> None:
    assert render_guidelines("**x**") is render_guidelines("**x**")
