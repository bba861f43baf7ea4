"""Short exercises in eight languages other than English, one table of words and sentences for each.

The words are chosen so that the sentences are right whichever of them are put in: no case, gender or number changes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Final

from gpt_pipeline.data.sources.sample.draft import Draft, pick_other


@dataclass(frozen=True, kw_only=True)
class Language:
    """What one language's exercises are made of. The sentences are format strings."""

    code: str
    names: tuple[str, ...]
    towns: tuple[str, ...]
    opposites: tuple[tuple[str, str], ...]
    sums: tuple[str, ...]
    """Word problems over `{name}`, `{a}` and `{b}` whose answer is the sum."""

    largest: int
    """The largest number that stands in a sum."""

    fact: str
    """A sentence over `{name}` and `{town}`."""

    where: tuple[str, ...]
    """Questions over `{name}` that `{town}` answers."""

    opposite_of: tuple[str, ...]
    """Questions over `{0}` for its opposite."""

    opposite_is: str
    """Their reasoning, over `{0}` and `{1}`."""

    text_says: str
    """Opens a reasoning; a fact follows."""

    replace: str
    """Asks to change `{old}` to `{new}` in `{sentence}`."""

    write_about: str
    """Asks for a sentence with `{name}` and `{town}`."""

    numeral: Callable[[int], str] = str
    """How a number is written; the smallest is 5, since Polish counts 2 to 4 in another case."""


def roman(number: int) -> str:
    """Return `number`, from 1 to 39, as a Roman numeral."""
    tens, ones = divmod(number, 10)
    return "X" * tens + ("", "I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX")[ones]


GERMAN: Final = Language(
    code="de",
    names=("Hans", "Greta", "Jürgen", "Lena", "Fritz", "Klara", "Uwe", "Heike"),
    towns=("Berlin", "Köln", "München", "Hamburg", "Leipzig", "Bremen", "Ulm", "Kiel"),
    opposites=(
        ("groß", "klein"), ("heiß", "kalt"), ("alt", "jung"), ("hell", "dunkel"), ("schnell", "langsam"),
        ("voll", "leer"), ("laut", "leise"), ("reich", "arm"),
    ),
    sums=(
        "{name} hat {a} Bücher und bekommt {b} dazu. Wie viele Bücher sind es jetzt?",
        "Im Korb liegen {a} Äpfel, und {name} legt {b} hinein. Wie viele Äpfel sind im Korb?",
        "{name} sammelt am Morgen {a} Muscheln und am Abend {b}. Wie viele Muscheln sind das?",
    ),
    largest=20,
    fact="{name} wohnt in {town}.",
    where=("Wo wohnt {name}?", "In welcher Stadt wohnt {name}?", "Wie heißt die Stadt, in der {name} wohnt?"),
    opposite_of=("Was ist das Gegenteil von {0}?", "Welches Wort ist das Gegenteil von {0}?"),
    opposite_is="Das Gegenteil von {0} ist {1}.",
    text_says="Im Text steht:",
    replace="Ersetze {old} durch {new}: {sentence}",
    write_about="Schreibe einen Satz mit den Wörtern {name} und {town}.",
)  # fmt: skip
SPANISH: Final = Language(
    code="es",
    names=("Carlos", "Lucía", "Pablo", "Marta", "Diego", "Elena", "Javier", "Inés"),
    towns=("Madrid", "Sevilla", "Bilbao", "Toledo", "Granada", "Lima", "Quito", "Bogotá"),
    opposites=(
        ("grande", "pequeño"), ("caliente", "frío"), ("viejo", "joven"), ("claro", "oscuro"), ("rápido", "lento"),
        ("lleno", "vacío"), ("alto", "bajo"), ("rico", "pobre"),
    ),
    sums=(
        "{name} tiene {a} libros y recibe {b} más. ¿Cuántos libros tiene ahora?",
        "En la cesta hay {a} manzanas y {name} pone {b} más. ¿Cuántas manzanas hay?",
        "{name} encuentra {a} monedas por la mañana y {b} por la tarde. ¿Cuántas monedas son?",
    ),
    largest=20,
    fact="{name} vive en {town}.",
    where=("¿Dónde vive {name}?", "¿En qué ciudad vive {name}?", "¿Cómo se llama la ciudad donde vive {name}?"),
    opposite_of=("¿Cuál es el contrario de {0}?", "¿Qué palabra es el contrario de {0}?"),
    opposite_is="El contrario de {0} es {1}.",
    text_says="El texto dice:",
    replace="Cambia {old} por {new}: {sentence}",
    write_about="Escribe una frase con las palabras {name} y {town}.",
)  # fmt: skip
FRENCH: Final = Language(
    code="fr",
    names=("Pierre", "Camille", "Louis", "Élise", "Jules", "Manon", "René", "Chloé"),
    towns=("Paris", "Lyon", "Nantes", "Lille", "Dijon", "Nice", "Rennes", "Tours"),
    opposites=(
        ("grand", "petit"), ("chaud", "froid"), ("vieux", "jeune"), ("clair", "sombre"), ("rapide", "lent"),
        ("plein", "vide"), ("haut", "bas"), ("riche", "pauvre"),
    ),
    sums=(
        "{name} a {a} livres et en reçoit {b} de plus. Combien de livres cela fait-il ?",
        "Il y a {a} pommes dans le panier et {name} en ajoute {b}. Combien de pommes y a-t-il ?",
        "{name} trouve {a} pièces le matin et {b} le soir. Combien de pièces cela fait-il ?",
    ),
    largest=20,
    fact="{name} habite à {town}.",
    where=("Où habite {name} ?", "Dans quelle ville habite {name} ?", "Quelle est la ville de {name} ?"),
    opposite_of=("Quel est le contraire de {0} ?", "Quel mot est le contraire de {0} ?"),
    opposite_is="Le contraire de {0} est {1}.",
    text_says="Le texte dit :",
    replace="Remplace {old} par {new} : {sentence}",
    write_about="Écris une phrase avec les mots {name} et {town}.",
)  # fmt: skip
POLISH: Final = Language(
    code="pl",
    names=("Jan", "Zofia", "Piotr", "Hanna", "Marek", "Ewa", "Paweł", "Łucja"),
    towns=("Kraków", "Poznań", "Gdańsk", "Lublin", "Toruń", "Opole", "Sopot", "Łódź"),
    opposites=(
        ("duży", "mały"), ("gorący", "zimny"), ("stary", "młody"), ("jasny", "ciemny"), ("szybki", "wolny"),
        ("pełny", "pusty"), ("wysoki", "niski"), ("bogaty", "biedny"),
    ),
    sums=(
        "{name} ma {a} książek i dostaje jeszcze {b}. Ile to razem książek?",
        "W koszu jest {a} jabłek, a {name} dokłada {b}. Ile jabłek jest w koszu?",
        "{name} ma {a} monet w domu i {b} w szkole. Ile to razem monet?",
    ),
    largest=10,
    fact="{name} mieszka w mieście {town}.",
    where=("Gdzie mieszka {name}?", "W jakim mieście mieszka {name}?", "Jakie jest miasto, w którym mieszka {name}?"),
    opposite_of=("Jakie jest przeciwieństwo słowa {0}?", "Które słowo jest przeciwieństwem słowa {0}?"),
    opposite_is="Przeciwieństwo słowa {0} to {1}.",
    text_says="W tekście jest napisane:",
    replace="Zamień {old} na {new}: {sentence}",
    write_about="Napisz zdanie ze słowami {name} i {town}.",
)  # fmt: skip
ITALIAN: Final = Language(
    code="it",
    names=("Marco", "Giulia", "Luca", "Chiara", "Paolo", "Sofia", "Niccolò", "Elisa"),
    towns=("Roma", "Milano", "Torino", "Napoli", "Genova", "Pisa", "Siena", "Parma"),
    opposites=(
        ("grande", "piccolo"), ("caldo", "freddo"), ("vecchio", "giovane"), ("chiaro", "scuro"), ("veloce", "lento"),
        ("pieno", "vuoto"), ("alto", "basso"), ("ricco", "povero"),
    ),
    sums=(
        "{name} ha {a} libri e ne riceve altri {b}. Quanti libri ha adesso?",
        "Nel cesto ci sono {a} mele e {name} ne mette altre {b}. Quante mele ci sono?",
        "{name} trova {a} monete la mattina e {b} la sera. Quante monete sono?",
    ),
    largest=20,
    fact="{name} abita a {town}.",
    where=("Dove abita {name}?", "In quale città abita {name}?", "Come si chiama la città di {name}?"),
    opposite_of=("Qual è il contrario di {0}?", "Quale parola è il contrario di {0}?"),
    opposite_is="Il contrario di {0} è {1}.",
    text_says="Il testo dice:",
    replace="Sostituisci {old} con {new}: {sentence}",
    write_about="Scrivi una frase con le parole {name} e {town}.",
)  # fmt: skip
DUTCH: Final = Language(
    code="nl",
    names=("Jan", "Femke", "Pieter", "Sanne", "Daan", "Lotte", "Bram", "Zoë"),
    towns=("Utrecht", "Leiden", "Delft", "Breda", "Gouda", "Zwolle", "Arnhem", "Gent"),
    opposites=(
        ("groot", "klein"), ("warm", "koud"), ("oud", "jong"), ("licht", "donker"), ("snel", "langzaam"),
        ("vol", "leeg"), ("hoog", "laag"), ("rijk", "arm"),
    ),
    sums=(
        "{name} heeft {a} boeken en krijgt er {b} bij. Hoeveel boeken zijn het nu?",
        "In de mand liggen {a} appels en {name} legt er {b} bij. Hoeveel appels liggen er in de mand?",
        "{name} vindt {a} munten in de ochtend en {b} in de avond. Hoeveel munten zijn dat?",
    ),
    largest=20,
    fact="{name} woont in {town}.",
    where=("Waar woont {name}?", "In welke stad woont {name}?", "Hoe heet de stad waar {name} woont?"),
    opposite_of=("Wat is het tegendeel van {0}?", "Welk woord is het tegendeel van {0}?"),
    opposite_is="Het tegendeel van {0} is {1}.",
    text_says="In de tekst staat:",
    replace="Vervang {old} door {new}: {sentence}",
    write_about="Schrijf een zin met de woorden {name} en {town}.",
)  # fmt: skip
LATIN: Final = Language(
    code="la",
    names=("Marcus", "Iulia", "Quintus", "Claudia", "Titus", "Livia", "Gaius", "Aurelia"),
    towns=("Roma", "Capua", "Ostia", "Verona", "Cremona", "Ravenna", "Parma", "Syracusa"),
    opposites=(
        ("magnus", "parvus"), ("calidus", "frigidus"), ("vetus", "novus"), ("clarus", "obscurus"),
        ("celer", "tardus"), ("plenus", "vacuus"), ("altus", "humilis"), ("dives", "pauper"),
    ),
    sums=(
        "{name} {a} libros habet et {b} accipit. Quot libros nunc habet?",
        "{name} {a} nummos domi habet et {b} in foro. Quot nummos habet?",
        "{name} mane {a} aves videt, vespere {b}. Quot aves videt?",
    ),
    largest=15,
    fact="{name} ex urbe {town} venit.",
    where=("Unde venit {name}?", "Ex qua urbe venit {name}?"),
    opposite_of=("Quod verbum verbo {0} contrarium est?", "Dic verbum contrarium verbo {0}."),
    opposite_is="Verbo {0} contrarium est {1}.",
    text_says="Scriptum est:",
    replace="Scribe {new} pro {old}: {sentence}",
    write_about="Scribe sententiam cum verbis {name} et {town}.",
    numeral=roman,
)  # fmt: skip
PORTUGUESE: Final = Language(
    code="pt",
    names=("João", "Beatriz", "Tiago", "Inês", "Rui", "Marta", "Vasco", "Leonor"),
    towns=("Lisboa", "Braga", "Coimbra", "Évora", "Faro", "Aveiro", "Recife", "Salvador"),
    opposites=(
        ("grande", "pequeno"), ("quente", "frio"), ("velho", "novo"), ("claro", "escuro"), ("rápido", "lento"),
        ("cheio", "vazio"), ("alto", "baixo"), ("rico", "pobre"),
    ),
    sums=(
        "{name} tem {a} livros e recebe mais {b}. Quantos livros tem agora?",
        "No cesto há {a} bananas e {name} põe mais {b}. Quantas bananas há no cesto?",
        "{name} encontra {a} moedas de manhã e {b} à tarde. Quantas moedas são?",
    ),
    largest=20,
    fact="{name} mora em {town}.",
    where=("Onde mora {name}?", "Em que cidade mora {name}?", "Qual é a cidade onde {name} mora?"),
    opposite_of=("Qual é o contrário de {0}?", "Que palavra é o contrário de {0}?"),
    opposite_is="O contrário de {0} é {1}.",
    text_says="O texto diz:",
    replace="Troca {old} por {new}: {sentence}",
    write_about="Escreve uma frase com as palavras {name} e {town}.",
)  # fmt: skip

LANGUAGES: Final = {
    language.code: language for language in (GERMAN, SPANISH, FRENCH, POLISH, ITALIAN, DUTCH, LATIN, PORTUGUESE)
}
_SMALLEST: Final = 5


def foreign_draft(rng: Random, language: Language, *, name: str, town: str) -> Draft:
    """Return an exercise in `language` about someone in a town; those two are the article."""
    chance = rng.random()
    fact = language.fact.format(name=name, town=town)
    if chance < 0.25:
        return _sum(rng, language, name)
    if chance < 0.5:
        query = f"{fact} {rng.choice(language.where).format(name=name)}"
        return Draft("rag", "where", query, f"{language.text_says} {fact}", town)
    if chance < 0.75:
        pair = rng.choice(language.opposites)
        query = f"{name} ({town}): {rng.choice(language.opposite_of).format(*pair)}"
        return Draft("memorization", "opposite", query, language.opposite_is.format(*pair), pair[1])
    if chance < 0.9:
        new = pick_other(rng, language.towns, town)
        query = language.replace.format(old=town, new=new, sentence=fact)
        return Draft("editing", "replace a word", query, "", language.fact.format(name=name, town=new))
    query = language.write_about.format(name=name, town=town)
    return Draft("constrained writing", "two words", query, "", fact, f"words:{name},{town}")


def _sum(rng: Random, language: Language, name: str) -> Draft:
    a, b = (rng.randint(_SMALLEST, language.largest), rng.randint(_SMALLEST, language.largest))
    left, right, total = (language.numeral(number) for number in (a, b, a + b))
    query = rng.choice(language.sums).format(name=name, a=left, b=right)
    return Draft("math exercise", "addition", query, f"{left} + {right} = {total}.", total, f"result:{a + b}")
