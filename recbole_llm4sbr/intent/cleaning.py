"""The name in an LLM's answer (paper section 4.1.2): numbering, quotes and talk around it go, echoes and refusals are no answer."""

import re
from collections.abc import Collection, Sequence

# Applied in this order, again and again until nothing changes: what stands before a name ...
_BEFORE = [
    r"[\s\-*#>•·]+",  # bullets and headings
    r"(?:item |movie |product )?\(?\d{1,3}[.):]\s+",  # numbering, "3. "
    r"(?:final |my |the )?(?:answer|guess|output|response|recommendation"  # "My guess is ", "Title: "
    r"|(?:movie|product|item|book|song)(?: title| name)?|title|name)\s*(?:is|:|would be)[\s:]*",
    r"(?:sure|certainly|okay|ok|of course)[,!.:]+\s*",
    r"[\"“”'‘’`*_]+(?=.*[\"“”'‘’`*_])",  # an opening quote that is closed later
]
# Talk in small letters: "I can't name one" is a refusal, "I Can't Sleep" and "Sorry, Wrong Number" are films.
_REFUSAL = re.compile(
    r"^(?:[Aa]s an (?:AI|ai)\b|[Ii](?:['’]m| am) (?:sorry|not sure)\b|[Ss]orry(?:$|,? (?:but|[Ii](?:['’]m| am| can| could| do))\b)"
    r"|[Ii] (?:cannot|can(?:'|’| no)t|could(?:n['’]| no)t|do(?:n['’]| no)t|am (?:not able|unable) to|am not)"
    r"(?:$| (?:access|answer|assist|believe|comply|decide|determine|engage|find|fulfill|generate|give|guess|have|help|identify|infer|know"
    r"|make|name|predict|provide|recommend|say|see|suggest|sure|tell|think|understand)\b)"
    r"|[Uu]nfortunately(?:$|,? (?:[a-z]|I\b))|(?:[Nn]/?[Aa]|[Nn]one|[Uu]nknown)$)"
)
# What may stand before a colon and the name: a sentence in small letters that speaks of answering, as no title of an item does.
_SENTENCE = re.compile(r"\S+(?: +(?:[a-z0-9(]\S*|I(?:['’]\w+)?))+")
_ANNOUNCES = re.compile(
    r"^here(?:['’]s| is| are| you)\b|\b(?:person|user|customer|viewer|buyer|guess|recommend\w*|suggest\w*|answer|my (?:choice|pick)"
    r"|movie|film|product|item|title|I(?:['’]d| would| think| believe)|would (?:love|like|enjoy|pick|choose|watch|buy)"
    r"|(?:s?he|they) (?:loves?|likes?|enjoys?|picks?))\b",
    re.I,
)
_PLACEHOLDER = re.compile(r"^(?:movie|product|item|thing|title|name|answer)(?: (?:title|name))?(?: #?\d+)?$", re.I)


def clean(raw: str, qualifiers: Sequence[str] = (), titles: Collection[str] = ()) -> str:
    """The name in a raw answer, or an empty string when there is none (an echo of the question, a refusal, nothing).

    Args:
        raw: what the LLM said, without `answer_start`.
        qualifiers: the template's qualifiers; an answer that repeats the beginning of one is no answer.
        titles: of the catalogue, tidied and in small letters; one of these is no refusal or placeholder, even if it reads like one.

    >>> clean('1. "Toy Story" is a good choice.'), clean("Sure! My guess is: Heat (1995)"), clean("I'm sorry, I cannot")
    ('Toy Story', 'Heat (1995)', '')
    >>> clean("Here is one thing this person loves: Oak Lamp"), clean("Star Wars: A New Hope")
    ('Oak Lamp', 'Star Wars: A New Hope')
    >>> clean("Sorry"), clean("Sorry", titles={"sorry"}), clean("Movie 43"), clean("Movie 43", titles={"movie 43"})
    ('', 'Sorry', '', 'Movie 43')
    """
    text = tidy(raw, titles)
    words = re.findall(r"\w+", text.lower())
    no_title = _PLACEHOLDER.match(text) or _REFUSAL.match(text)
    if not words or (no_title and text.casefold() not in titles):
        return ""
    for qualifier in qualifiers:
        asked = re.findall(r"\w+", qualifier.lower())
        begins = len(words) > 1 and words[:4] == asked[: len(words[:4])]
        if begins or (len(words) > 2 and f" {' '.join(words)} " in f" {' '.join(asked)} "):
            return ""
    return text


def without_thoughts(raw: str) -> str:
    """An answer without what a reasoning model thought before it; "" where its thoughts have no end.

    >>> without_thoughts("<think>\\nA heist film?\\n</think>\\n\\nHeat (1995)"), without_thoughts("<think>\\nA heist film, or")
    ('\\n\\nHeat (1995)', '')
    """
    _, end, answer = raw.rpartition("</think>")  # some chat templates open it in the prompt
    return "" if not end and raw.lstrip().startswith("<think>") else answer


def tidy(raw: str, titles: Collection[str] | None = None) -> str:
    """The first line of an answer that does not announce others, without numbering, quotes and talk around it, whatever is left.

    Titles of items are compared so, too.

    Args:
        raw: an answer, or a title.
        titles: as for `clean`, of an answer: a sentence before its name goes, too; None for a title, whose colons are its own.

    >>> tidy("Here is my guess:\\n'Heat (1995)'")
    'Heat (1995)'
    """
    lines = [line.strip() for line in raw.splitlines() if line.strip()]
    text = next((line for line in lines if not line.endswith(":")), lines[0] if lines else "")
    before = None
    while before != text:
        before = text
        for pattern in _BEFORE:
            text = re.sub(rf"^{pattern}", "", text, flags=re.I)
        if titles is not None:
            text = _behind_lead_in(text, titles)
    text = re.split(r"[\"“”]", text)[0]  # what follows a closing quote is talk
    return re.sub(r"[\s.,;:!*_`'’]+$", "", re.sub(r"\s+", " ", text))


def _behind_lead_in(text: str, titles: Collection[str]) -> str:
    """What stands behind the colon of a sentence that announces a name; the whole text where no such sentence begins it.

    A title keeps its colon ("Mission: Impossible"): those of the catalogue always, others unless what stands before it reads like a
    sentence in small letters about an answer.

    >>> _behind_lead_in("One that fits well: Oak Lamp", {"oak lamp"}), _behind_lead_in("My next item: part 2", {"my next item: part 2"})
    ('Oak Lamp', 'My next item: part 2')
    """
    head, colon, rest = text.partition(": ")
    if not colon or not rest.strip() or re.search(r"[\"“”]", head):
        return text
    announces, sentence = _ANNOUNCES.search(head), _SENTENCE.fullmatch(head)
    named = tidy(rest).casefold() in titles
    begun = f"{tidy(head).casefold()}:"
    if not (announces and sentence) and not (named and (announces or (sentence and head.count(" ") > 1))):
        return text
    return text if any(title.startswith(begun) for title in titles) else rest
