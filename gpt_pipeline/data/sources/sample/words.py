"""The words that English documents are made of.

Few and frequent ones, nearly all of them one token of GPT-2's vocabulary, so that a small model meets each often enough
to learn within minutes what it is and how to repeat it. No noun or adjective that follows "a" begins with a vowel.
"""

# ruff: noqa: SIM905  (a list of words is easier to read and to extend without quotes)

from __future__ import annotations

from typing import Final

NAMES: Final = tuple("Tom Anna Ben Maria Sam Lucy Max Emma Paul Sara Jack Rosa".split())
JOBS: Final = tuple("baker farmer teacher doctor painter sailor singer writer".split())
TOWNS: Final = tuple("Rome Paris London Berlin Madrid Vienna Oslo Dublin Athens Cairo".split())
COLOURS: Final = tuple("red blue green yellow black white brown pink".split())
ANIMALS: Final = tuple("dog cat horse cow sheep pig goat duck".split())
PLANTS: Final = tuple("rose tree bush pine palm flower".split())
TOOLS: Final = tuple("hammer saw knife spoon fork brush".split())
THINGS: Final = tuple("boat house car hat coat door bike chair".split())
FOODS: Final = tuple("bread cheese soup rice cake honey corn salad".split())
ITEMS: Final = tuple("apples books coins eggs stones cards cups balls".split())
DAYS: Final = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS: Final = tuple("January February March April May June July August September October November December".split())
VILLAGES: Final = tuple("Newton Hilton Milton Weston Preston Burton".split())


def _pairs(text: str) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(pair.split()) for pair in text.split(","))


OPPOSITES: Final = _pairs(
    "hot cold,big small,old young,fast slow,high low,long short,wet dry,full empty,open closed,light dark,"
    "day night,early late,good bad,hard soft,rich poor,strong weak,left right,happy sad,clean dirty,loud quiet,"
    "near far,first last,black white,thick thin,north south,east west,true false,love hate,start stop,win lose"
)
CAPITALS: Final = _pairs(
    "France Paris,Spain Madrid,Italy Rome,Germany Berlin,Japan Tokyo,Russia Moscow,Egypt Cairo,Greece Athens,"
    "Norway Oslo,Ireland Dublin,Peru Lima,Austria Vienna,China Beijing,Portugal Lisbon"
)
YOUNG: Final = _pairs("dog puppy,cat kitten,cow calf,sheep lamb,pig piglet,goat kid,bear cub,horse foal,hen chick")
PLURALS: Final = _pairs(
    "man men,woman women,child children,foot feet,tooth teeth,mouse mice,leaf leaves,dog dogs,boat boats,"
    "house houses,cup cups,box boxes,tree trees,knife knives,wolf wolves,bus buses"
)
TYPICAL_COLOURS: Final = _pairs(
    "grass green,snow white,blood red,coal black,milk white,corn yellow,sky blue,chocolate brown"
)
VERBS: Final = _pairs(
    "walks walked,works worked,plays played,waits waited,sings sang,runs ran,sleeps slept,looks looked,"
    "comes came,stays stayed,eats ate,reads read"
)  # present and past, each followed by a place
KINDS: Final = {
    "an animal": ANIMALS, "a plant": PLANTS, "a tool": TOOLS, "a town": TOWNS, "a colour": COLOURS, "a month": MONTHS,
    "a food": FOODS, "a day": DAYS, "a name": NAMES,
}  # fmt: skip
