"""The tokenizer of `tiny`: byte-level BPE that knows our words whole, reads any text and gives it back exactly."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

FUNCTION_WORDS = """
a an the this that these those it its they them their he she his her him we us our you your i me my who whom whose
which what when where why how all any each every some no none not nor and or but if then than else because so since
until while though although unless after before during about above below over under between beside behind beyond near
far next in on at to from of off for with without within into onto upon out up down by as per via through across along
around against among toward towards is am are was were be been being do does did done have has had having can could
may might must shall should will would let get gets got go goes going gone come comes came make makes made take takes
took taken give gives given gave put puts keep keeps kept say says said tell tells told see sees saw seen look looks
looked show shows shown ask asks asked answer answers find finds found use uses used need needs want wants know knows
known think thinks thought try tries tried please only also just even still yet already again once twice more most
less least much many few little lot both either neither other others another same such own very too quite rather
almost about enough here there now today always never often sometimes first second third fourth fifth sixth last one
two three four five six seven eight nine ten eleven twelve zero half
""".split()  # noqa: SIM905

CONTENT_WORDS = """
block blocks brick bricks box boxes cube cubes ball balls sphere cylinder object objects thing things tower towers
stack stacks stacked pile wall structure house table floor ground ramp plank beam support supports base top bottom
middle centre center side sides edge edges corner end front back face surface picture image photo scene camera view
world room sky left right upper lower high higher highest low lower lowest tall taller tallest short shorter shortest
wide wider narrow big bigger biggest small smaller smallest large larger largest tiny long longer heavy heavier
heaviest light lighter lightest red green blue yellow purple orange black white grey gray brown pink colour colours
color colors dark bright stable unstable safe balanced balance balances tilt tilts tilted lean leans leaning fall
falls falling fell fallen topple topples toppled collapse collapses collapsed stand stands standing stood stay stays
rest rests resting rested remain remains tip tips tipped slide slides slid roll rolls rolled bounce bounces hit hits
push pushes pushed pull pulls pulled drop drops dropped move moves moved moving shift shifts shifted displace
displaced place places placed position positions distance distances height width length depth size weight mass force
forces gravity friction speed time direction amount number numbers count counts counted many total sum degree degrees
angle centimetre centimetres centimeter centimeters metre metres meter meters millimetre inch inches percent tenth
tenths unit units yes no true false maybe left right correct wrong good bad new old possible impossible likely
unlikely certain sure clear same different equal close closer closest empty full open whole single word words letter
letters sentence line text question questions reason reasons reasoning step steps fact facts rule rules example
examples option options choice choices choose describe explain count name list repeat compare consider decide predict
imagine assume suppose happen happens happened change changes changed start starts started stop stops stopped begin
begins finish touch touches touching contact contacts overlap overlaps part parts piece pieces group set point points
order above below beneath underneath beside onto directly slightly far further farther farthest exactly nearly
completely person people human child children model system user assistant robot computer science physics experiment
test task trial result results data value values helpful friendly simple short brief final based following given using
because therefore however thus hence so first next then finally hello hi thanks thank sorry ok okay day week year man
woman hand hands eye eyes head water air fire stone wood metal glass paper car road tree work works play read write
learn learns teach help helps hold holds turn turns run runs walk sit live feel call
""".split()  # noqa: SIM905


PAD, BOS, EOS, IMAGE, USER, ASSISTANT = SPECIAL = ("<pad>", "<s>", "</s>", "<image>", "<user>", "<assistant>")
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
"""One token each, but ordinary text: decoding keeps them."""
VOCABULARY = 2048
CONTEXT = 1024
"""Longest sequence, tokens."""

# A turn is one segment of text between tags and special tokens. One space goes before each segment, so that its first
# word is the token that the same word is in mid-sentence, and comes off again in decoding.
_WORDS = r" ?\d| ?\p{L}+| ?[^\s\p{L}\d]+|\s+(?!\S)|\s+"
"""Digits one by one, words, punctuation, white space; each of the first three with the space before it."""

CHAT_TEMPLATE = (
    "{{ '<s>' }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ '<assistant>' }}{% generation %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% endif %}{{ '</s>' }}{% endgeneration %}"
    "{% else %}{% if message['role'] != 'system' %}{{ '<user>' }}{% endif %}"
    "{% if message['content'] is string %}{{ message['content'] | replace('<image>\\n', '<image>') }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<image>' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% endif %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
"""<s>system<user>image and text<assistant>reply</s><user>..."""


def build_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Train the tokenizer. `texts` are prompts whose words must become whole tokens; common English fills the rest."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Prepend(" ")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.ByteLevel(),
            *(decoders.Replace(f"{token} ", token) for token in (*SPECIAL, *TAGS)),
            decoders.Strip(" ", 1, 0),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(TAGS),
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_training_text(texts), trainer)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL])
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in TAGS])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        padding_side="left",
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
        extra_special_tokens={"image_token": IMAGE},
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def _training_text(texts: Iterable[str]) -> Iterator[str]:
    # Repetition is weight: merges go to digits and the words of the prompts first, then to English.
    yield from ["0 1 2 3 4 5 6 7 8 9 - -1"] * 1000
    for text in texts:
        for token in (*SPECIAL, *TAGS):
            text = text.replace(token, " ")
        yield from [text] * 50
        yield from ["\n" + text] * 5  # plain LLaVA prompts put a line break between the image and the text
    for word in sorted({*FUNCTION_WORDS, *CONTENT_WORDS}):
        yield from [word] * 10
        yield word.capitalize()
