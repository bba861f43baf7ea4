"""The words that English documents are made of.

Few and frequent ones, nearly all of them one token of GPT-2's vocabulary, so that a model of a million parameters
meets each often enough to learn it. No noun or adjective begins with a vowel sound: it follows "a" wherever it stands.
"""

# ruff: noqa: SIM905  (a list of words is easier to read and to extend without quotes)

from __future__ import annotations

from typing import Final

NAMES: Final = tuple(
    "Tom Anna Ben Maria Sam Lucy Max Emma Paul Sara Jack Rosa Leo Nina Adam Clara Peter Julia Karl Eva "
    "David Laura Felix Helen Oscar Alice Simon Grace Henry Kate Martin Ruth Victor Diana Daniel Hugo Olivia Mark "
    "Sophie".split()
)
JOBS: Final = tuple(
    "baker farmer teacher doctor painter sailor singer writer nurse driver cook judge pilot dancer hunter miner "
    "tailor".split()
)
TOWNS: Final = tuple(
    "Rome Paris London Berlin Madrid Vienna Oslo Dublin Athens Cairo Lisbon Prague Milan Venice Boston Denver Lima "
    "Delhi Tokyo".split()
)
COLOURS: Final = ("red", "blue", "green", "yellow", "black", "white", "brown", "pink", "grey", "purple")
ANIMALS: Final = tuple(
    "dog cat horse cow sheep pig goat duck bird fish mouse rabbit bear wolf fox lion tiger frog bee snake "
    "monkey".split()
)
PLANTS: Final = ("rose", "tree", "bush", "pine", "palm", "vine", "flower", "moss")
TOOLS: Final = ("hammer", "saw", "knife", "spoon", "fork", "drill", "needle", "brush", "ruler", "rope")
THINGS: Final = ("boat", "house", "car", "hat", "coat", "door", "bike", "chair", "table", "bag", "cup", "box", "lamp")
FOODS: Final = (
    "bread", "cheese", "soup", "rice", "cake", "bacon", "honey", "milk", "butter", "corn", "salad", "pasta", "pizza",
)  # fmt: skip
ITEMS: Final = (
    "apples", "books", "coins", "eggs", "stones", "shells", "cards", "pens", "cups", "balls", "stars", "keys", "boxes",
    "nuts", "stamps", "toys", "flowers",
)  # fmt: skip
DAYS: Final = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS: Final = tuple("January February March April May June July August September October November December".split())
VILLAGES: Final = tuple(
    "Newton Hilton Milton Weston Preston Burton Norton Hampton Ashton Lincoln Stone Wells Clifton Marlow".split()
)
SHIPS: Final = ("Star", "Swan", "Hope", "Arrow", "Pearl", "Falcon", "Storm", "Queen", "Dawn", "Wind", "Eagle")

OPPOSITES: Final = tuple(
    tuple(pair.split())
    for pair in (
        "hot cold,big small,old young,fast slow,high low,long short,wet dry,full empty,open closed,light dark,"
        "day night,early late,good bad,hard soft,rich poor,strong weak,left right,happy sad,clean dirty,loud quiet,"
        "near far,first last,black white,thick thin,north south,east west,true false,love hate,start stop,win lose"
    ).split(",")
)
CAPITALS: Final = tuple(
    tuple(pair.split())
    for pair in (
        "France Paris,Spain Madrid,Italy Rome,Germany Berlin,Japan Tokyo,Russia Moscow,Egypt Cairo,Greece Athens,"
        "Norway Oslo,Ireland Dublin,Peru Lima,Austria Vienna,China Beijing,Portugal Lisbon"
    ).split(",")
)
YOUNG: Final = tuple(
    tuple(pair.split())
    for pair in "dog puppy,cat kitten,cow calf,sheep lamb,pig piglet,goat kid,bear cub,horse foal,hen chick".split(",")
)
PLURALS: Final = tuple(
    tuple(pair.split())
    for pair in (
        "man men,woman women,child children,foot feet,tooth teeth,mouse mice,leaf leaves,dog dogs,boat boats,"
        "house houses,cup cups,box boxes,tree trees,knife knives,wolf wolves,bus buses"
    ).split(",")
)
TYPICAL_COLOURS: Final = tuple(
    tuple(pair.split())
    for pair in "grass green,snow white,blood red,coal black,milk white,corn yellow,sky blue,chocolate brown".split(",")
)
VERBS: Final = tuple(
    tuple(pair.split())
    for pair in (
        "walks walked,works worked,plays played,waits waited,sings sang,runs ran,sleeps slept,looks looked,"
        "comes came,stays stayed,eats ate,reads read"
    ).split(",")
)  # present and past, each followed by a place
KINDS: Final = {
    "an animal": ANIMALS, "a plant": PLANTS, "a tool": TOOLS, "a town": TOWNS, "a colour": COLOURS, "a month": MONTHS,
    "a food": FOODS, "a day": DAYS, "a name": NAMES,
}  # fmt: skip
