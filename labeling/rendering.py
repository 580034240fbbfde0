"""The one place where text from a model or a file becomes HTML.

Everything that comes in is hostile. Three walls stand one behind the other: markdown-it passes no HTML and
makes no images, nh3 lets through a short list of tags and nothing that htmx or a script could act on, and
the pages' Content-Security-Policy runs nothing inline. Rendered HTML is stored beside the text
(labeling.prompts), so this runs once for a completion and never while a rater waits.
"""

import re
from collections.abc import Sequence
from functools import cache, lru_cache
from html import escape

import nh3
from django.utils.safestring import SafeString, mark_safe
from markdown_it import MarkdownIt
from markdown_it.token import Token
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from pygments.token import STANDARD_TYPES
from pygments.util import ClassNotFound

# Longer texts are shown as they are, wrapped: markdown's cost grows faster than its input can be trusted.
MARKDOWN_LIMIT = 40_000
HIGHLIGHT_LIMIT = 10_000
# markdown-it leaves out what is nested deeper than its limit, and a rater must see everything.
_DEEPEST_BLOCK = 40
_DEEPEST_SHOWN = 30

_TAGS = {
    *("p", "br", "hr", "h1", "h2", "h3", "h4", "h5", "h6", "blockquote", "ul", "ol", "li"),
    *("em", "strong", "s", "code", "pre", "span", "a", "table", "thead", "tbody", "tr", "th", "td"),
}
_ADDRESS = re.compile(r"(?:https?://|mailto:)", re.IGNORECASE)
_CODE_CLASSES = {name for name in STANDARD_TYPES.values() if name}

# Among them what turns text around unseen (Trojan Source, CVE-2021-42574), and invisible tags.
_CONTROL = re.compile(
    "\U0001f3f4[\U000e0020-\U000e007e]+\U000e007f|"  # a flag is spelt with tags
    r"[\x00-\x08\x0b-\x1f\x7f-\x84\x86-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufeff\U000e0000-\U000e007f]"
)
# A line that markdown cannot read as anything but words.
_PLAIN_LINE = r"(?!\d{1,9}[.)]|_)[\w\"'(“‘«¿¡—–][^\\`*_\[\]<>&#|~\n]*(?<!\s)"
_PLAIN = re.compile(rf"{_PLAIN_LINE}(?:\n{{1,2}}{_PLAIN_LINE})*\n*")


def shown(text: object) -> SafeString:
    """Text of a model, a file or a person as a page shows it, whatever stands there; a dash for nothing."""
    return mark_safe(render_markdown(str(text)) or "<p>–</p>")  # noqa: S308 - sanitised below


def render_markdown(text: str) -> str:
    """Turn markdown into sanitised HTML. The result is safe to mark as such, whatever the text is."""
    text = _with_visible_controls(text)
    if len(text) > MARKDOWN_LIMIT:
        return _as_it_is(text)
    if _PLAIN.fullmatch(text):
        return _paragraphs(text)
    tokens = _markdown().parse(text)
    if _depth(tokens) > _DEEPEST_SHOWN:
        return _as_it_is(text)
    return _sanitised(_markdown().renderer.render(tokens, _markdown().options, {}))


@lru_cache(maxsize=64)
def render_guidelines(text: str) -> str:
    """Render text that many pages show: the same guidelines stand beside every task."""
    return render_markdown(text)


def _with_visible_controls(text: str) -> str:
    """Show characters that a browser would swallow or act on; `\\t` and `\\n` stay."""
    return _CONTROL.sub(_picture, text.replace("\r\n", "\n").replace("\r", "\n"))


def _picture(found: re.Match[str]) -> str:
    if len(found[0]) > 1:
        return found[0]
    code = ord(found[0])
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else "\ufffd"


def _as_it_is(text: str) -> str:
    return f'<div class="plain" tabindex="0">{escape(text, quote=False)}</div>\n'


def _depth(tokens: Sequence[Token]) -> int:
    return max((token.level + _depth(token.children or ()) for token in tokens), default=0)


def _paragraphs(text: str) -> str:
    """What the long way gives for words alone, 50 times faster: most completions are that."""
    return "".join(
        "<p>{}</p>\n".format(block.replace("\n", "<br>\n")) for block in text.strip("\n").split("\n\n")
    )


@cache
def _markdown() -> MarkdownIt:
    parser = MarkdownIt(
        "commonmark",
        {
            "html": False,
            "linkify": False,
            "breaks": True,
            "maxNesting": _DEEPEST_BLOCK,
            "highlight": _highlighted,
        },
    )
    # A link's definition elsewhere in the text would be invisible: it stays as it was written.
    parser.enable(["table", "strikethrough"]).disable(["image", "reference"])
    parser.validateLink = lambda url: bool(_ADDRESS.match(url))  # type: ignore[method-assign]
    return parser


def _highlighted(code: str, language: str, _attributes: str) -> str:
    """Mark up the tokens of a fenced block; an empty answer leaves the block as it is, escaped."""
    if not language or len(code) > HIGHLIGHT_LIMIT:
        return ""
    try:
        lexer = get_lexer_by_name(language, stripnl=False, ensurenl=False)
    except ClassNotFound:
        return ""
    return highlight(code, lexer, HtmlFormatter(nowrap=True))


def _sanitised(html: str) -> str:
    return nh3.clean(
        html,
        tags=_TAGS,
        attributes={"a": {"href", "title"}, "ol": {"start"}},
        attribute_filter=_no_address_of_ours,
        allowed_classes={"span": _CODE_CLASSES},
        url_schemes={"http", "https", "mailto"},
        set_tag_attribute_values={"a": {"target": "_blank"}, "pre": {"tabindex": "0"}},  # it may scroll
        link_rel="noopener noreferrer nofollow",
        strip_comments=True,
    )


def _no_address_of_ours(_tag: str, attribute: str, value: str) -> str | None:
    """Links lead elsewhere or nowhere: a relative one would be a way into these pages."""
    return value if attribute != "href" or _ADDRESS.match(value) else None
