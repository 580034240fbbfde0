"""A fixed text, the same for every run and project: what a policy forgets of it, training took away.

Plain prose of our own that belongs to no task: a policy that learns a narrow one finds it less likely.
The figure is nats for a token; compare it between policies of one tokenizer only.
"""

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from training.rlhf.measures.perplexity import perplexity
from training.rlhf.rows.single_rows import TextRow

FIXED_TEXTS = (
    "The morning train left the station a little late. Two people shared a newspaper, one reading the front "
    "page and the other the back, and neither turned it before the other had finished. Outside, the fields "
    "were still white, and a row of poplars stood along the canal like a fence that somebody had forgotten.",
    "To make the soup, cut two onions and a carrot into small pieces and cook them slowly in butter until "
    "they are soft. Add a litre of water, three potatoes and some salt. After twenty minutes, crush the "
    "potatoes with a fork. It tastes better on the second day.",
    "A lake freezes from above because water is heaviest at four degrees. When the surface grows colder than "
    "that, it stays on top, and the ice that forms there keeps the wind away from what lies below. Fish live "
    "through the winter in the layer near the ground.",
    "The library opens at nine and closes at six, except on Wednesdays. Books may be kept for four weeks. If "
    "nobody else has asked for one, you can keep it for four weeks more; call us, or tell the person at the "
    "desk. Please do not put books back on the shelves yourself.",
    "My grandmother counted in dozens. She bought eggs, buttons and candles that way, and when I was ten she "
    "told me that I was nearly a dozen years old. I have never learned to think of twelve as an odd number "
    "to stop at.",
)


def nats_on_fixed_text(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> float | None:
    """Nats for a token of the fixed texts; lower is better remembered."""
    rows = [TextRow(line=number, text=text) for number, text in enumerate(FIXED_TEXTS, start=1)]
    found = perplexity(model, tokenizer, rows, batch_size=len(rows))
    return found["nats_per_token"] if found else None
