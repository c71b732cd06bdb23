"""
The vocabulary of the synthetic corpus: how captions name kinds of sound, how often, in what manner and in what order.

`WORDING` is that of all splits but those of unseen words, which have `OTHER_WORDING`: other words for every kind, count
and attribute, and other sentences.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Words:
    """
    How captions name a kind of event.

    Args:
        actors (`tuple`): Subject, verb and participle; the subject is plural if the verb is ("birds", "chirp").
        masses (`tuple` of `str`): Names of the sound that take no article.
        units (`tuple`): Singular and plural of one occurrence, for kinds that have occurrences.
    """

    actors: tuple[tuple[str, str, str], ...]
    masses: tuple[str, ...]
    units: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Wording:
    """
    The words of a split's captions.

    Args:
        words (`dict`): By kind.
        adverbs (`dict`), adjectives (`dict`): By name and level of an attribute.
        times (`dict`): By count: "twice".
        several_times (`tuple` of `str`): For a count that is not told.
        numbers (`dict`): By count: "two".
        several_numbers (`tuple` of `str`): For a count that is not told.
        templates (`dict`): By relation, then by the number of events. They take clauses ("a dog barks") as {0c}, and
            participles ("a dog barking") or nouns ("two loud barks") as {0n}.
    """

    words: dict[str, Words]
    adverbs: dict[tuple[str, int], tuple[str, ...]]
    adjectives: dict[tuple[str, int], tuple[str, ...]]
    times: dict[int, tuple[str, ...]]
    several_times: tuple[str, ...]
    numbers: dict[int, str]
    several_numbers: tuple[str, ...]
    templates: dict[str, dict[int, tuple[str, ...]]]


WORDS = {
    "rain": Words(
        (("rain", "falls", "falling"), ("rain", "pours down", "pouring down"), ("raindrops", "patter", "pattering")),
        ("rainfall", "rain"),
    ),
    "thunder": Words(
        (("thunder", "rumbles", "rumbling"), ("thunder", "rolls", "rolling"), ("thunder", "crashes", "crashing")),
        ("thunder",),
        (("clap of thunder", "claps of thunder"), ("thunderclap", "thunderclaps")),
    ),
    "wind": Words(
        (("wind", "blows", "blowing"), ("the wind", "howls", "howling"), ("gusts of wind", "whistle", "whistling")),
        ("wind", "wind noise"),
    ),
    "stream": Words(
        (("water", "bubbles", "bubbling"), ("a stream", "gurgles", "gurgling"), ("a brook", "babbles", "babbling")),
        ("gurgling water", "bubbling of a stream"),
    ),
    "drops": Words(
        (("water", "drips", "dripping"), ("a tap", "drips", "dripping")),
        ("dripping", "dripping of water"),
        (("drip of water", "drips of water"), ("water drop", "water drops")),
    ),
    "waves": Words(
        (("waves", "roll ashore", "rolling ashore"), ("the sea", "washes in and out", "washing in and out")),
        ("surf", "sea surf"),
    ),
    "fire": Words(
        (("a fire", "crackles", "crackling"), ("wood", "burns and pops", "burning and popping")),
        ("crackling of a fire", "fire crackle"),
    ),
    "siren": Words(
        (("a siren", "wails", "wailing"), ("an emergency vehicle's siren", "howls", "howling")),
        ("siren wail", "wailing of a siren"),
    ),
    "telephone": Words(
        (("a telephone", "rings", "ringing"), ("a phone", "rings", "ringing")),
        ("telephone ringing", "ringing of a phone"),
        (("telephone ring", "telephone rings"), ("ring of a phone", "rings of a phone")),
    ),
    "bell": Words(
        (("a bell", "tolls", "tolling"), ("a church bell", "chimes", "chiming")),
        ("bell ringing", "tolling of a bell"),
        (("toll of a bell", "tolls of a bell"), ("bell stroke", "bell strokes")),
    ),
    "alarm": Words(
        (("an alarm", "beeps", "beeping"), ("an electronic alarm", "goes off", "going off")),
        ("alarm beeping", "beeping of an alarm"),
    ),
    "horn": Words(
        (("a car horn", "honks", "honking"), ("a car", "honks", "honking")),
        ("honking", "car horn honking"),
        (("honk of a car", "honks of a car"), ("car horn blast", "car horn blasts")),
    ),
    "whistle": Words(
        (("a whistle", "blows", "blowing"), ("a referee", "whistles", "whistling")),
        ("whistle blowing", "whistling of a referee"),
        (("whistle blast", "whistle blasts"), ("blast of a whistle", "blasts of a whistle")),
    ),
    "clock": Words(
        (("a clock", "ticks", "ticking"), ("a clock", "ticks and tocks", "ticking and tocking")),
        ("clock ticking", "ticking of a clock"),
    ),
    "engine": Words(
        (("an engine", "idles", "idling"), ("a motor", "rumbles", "rumbling"), ("an engine", "runs", "running")),
        ("engine noise", "rumbling of a motor"),
    ),
    "helicopter": Words(
        (("a helicopter", "hovers", "hovering"), ("a helicopter", "flies overhead", "flying overhead")),
        ("helicopter noise", "thudding of helicopter blades"),
    ),
    "drill": Words(
        (("a drill", "buzzes", "buzzing"), ("a power drill", "whirs", "whirring")),
        ("drilling", "drill noise"),
    ),
    "train": Words(
        (("a train", "clatters along", "clattering along"), ("a train", "rattles past", "rattling past")),
        ("train clatter", "clattering of train wheels"),
    ),
    "vacuum": Words(
        (("a vacuum cleaner", "hums", "humming"), ("a vacuum cleaner", "runs", "running")),
        ("vacuum cleaner noise", "humming of a vacuum cleaner"),
    ),
    "saw": Words(
        (("someone", "saws wood", "sawing wood"), ("a hand saw", "cuts through wood", "cutting through wood")),
        ("sawing", "sawing of wood"),
    ),
    "bark": Words(
        (("a dog", "barks", "barking"), ("a dog", "yaps", "yapping")),
        ("barking", "barking of a dog"),
        (("bark of a dog", "barks of a dog"), ("dog bark", "dog barks")),
    ),
    "meow": Words(
        (("a cat", "meows", "meowing"), ("a cat", "mews", "mewing")),
        ("meowing", "meowing of a cat"),
        (("meow of a cat", "meows of a cat"), ("cat call", "cat calls")),
    ),
    "birds": Words(
        (("birds", "chirp", "chirping"), ("songbirds", "sing", "singing"), ("a bird", "twitters", "twittering")),
        ("birdsong", "chirping of birds"),
    ),
    "crickets": Words(
        (("crickets", "chirp", "chirping"), ("crickets", "sing", "singing")),
        ("cricket chirping", "singing of crickets"),
    ),
    "frog": Words(
        (("a frog", "croaks", "croaking"), ("a toad", "croaks", "croaking")),
        ("croaking", "croaking of a frog"),
        (("croak of a frog", "croaks of a frog"), ("frog croak", "frog croaks")),
    ),
    "owl": Words(
        (("an owl", "hoots", "hooting"), ("an owl", "calls", "calling")),
        ("hooting", "hooting of an owl"),
        (("hoot of an owl", "hoots of an owl"), ("owl call", "owl calls")),
    ),
    "cow": Words(
        (("a cow", "moos", "mooing"), ("a cow", "lows", "lowing")),
        ("mooing", "mooing of a cow"),
        (("moo of a cow", "moos of a cow"), ("cow call", "cow calls")),
    ),
    "babble": Words(
        (("someone", "talks", "talking"), ("a person", "speaks", "speaking")),
        ("speech", "talking"),
    ),
    "applause": Words(
        (("people", "applaud", "applauding"), ("an audience", "claps", "clapping")),
        ("applause", "clapping"),
    ),
    "laughter": Words(
        (("someone", "laughs", "laughing"), ("a person", "laughs out", "laughing out")),
        ("laughter", "laughing"),
        (("laugh", "laughs"), ("burst of laughter", "bursts of laughter")),
    ),
    "footsteps": Words(
        (("someone", "walks", "walking"), ("footsteps", "echo", "echoing"), ("a person", "walks by", "walking by")),
        ("walking", "tapping of shoes"),
    ),
    "knocking": Words(
        (("someone", "knocks", "knocking"), ("someone", "knocks on a door", "knocking on a door")),
        ("knocking", "knocking on wood"),
        (("knock", "knocks"), ("knock on a door", "knocks on a door")),
    ),
    "hammer": Words(
        (("a hammer", "strikes metal", "striking metal"), ("someone", "hammers on metal", "hammering on metal")),
        ("hammering", "hammering on metal"),
        (("hammer blow", "hammer blows"), ("clang of a hammer", "clangs of a hammer")),
    ),
    "glass": Words(
        (("glass", "shatters", "shattering"), ("a window", "breaks", "breaking")),
        ("shattering of glass", "breaking glass"),
        (("crash of glass", "crashes of glass"), ("glass crash", "glass crashes")),
    ),
    "gunshot": Words(
        (("a gun", "fires", "firing"), ("someone", "fires a gun", "firing a gun")),
        ("shooting", "gunfire"),
        (("gunshot", "gunshots"), ("shot from a gun", "shots from a gun")),
    ),
    "snoring": Words(
        (("someone", "snores", "snoring"), ("a sleeper", "snores", "snoring")),
        ("snoring",),
        (("snore", "snores"), ("snoring breath", "snoring breaths")),
    ),
    # Kinds that only the splits of unseen kinds have.
    "rooster": Words(
        (("a rooster", "crows", "crowing"), ("a cock", "crows", "crowing")),
        ("crowing", "crowing of a rooster"),
        (("crow of a rooster", "crows of a rooster"),),
    ),
    "duck": Words(
        (("a duck", "quacks", "quacking"),),
        ("quacking", "quacking of a duck"),
        (("quack of a duck", "quacks of a duck"), ("duck call", "duck calls")),
    ),
    "sheep": Words(
        (("a sheep", "bleats", "bleating"), ("a goat", "bleats", "bleating")),
        ("bleating", "bleating of a sheep"),
        (("bleat of a sheep", "bleats of a sheep"),),
    ),
    "mosquito": Words(
        (("a mosquito", "buzzes", "buzzing"), ("a fly", "buzzes around", "buzzing around")),
        ("insect buzz", "buzzing of a mosquito"),
    ),
    "kettle": Words(
        (("a kettle", "whistles", "whistling"), ("water", "boils in a kettle", "boiling in a kettle")),
        ("whistling of a kettle",),
    ),
    "doorbell": Words(
        (("a doorbell", "chimes", "chiming"), ("a doorbell", "rings", "ringing")),
        ("doorbell ringing",),
        (("chime of a doorbell", "chimes of a doorbell"),),
    ),
    "chainsaw": Words(
        (("a chainsaw", "roars", "roaring"), ("a chainsaw", "revs", "revving")),
        ("chainsaw noise",),
    ),
    "typewriter": Words(
        (("a typewriter", "clacks", "clacking"), ("someone", "types", "typing")),
        ("typing", "clacking of a typewriter"),
    ),
    "jet": Words(
        (("a jet", "roars", "roaring"), ("an aeroplane", "flies past", "flying past")),
        ("jet noise", "roaring of an aeroplane"),
    ),
    "drum": Words(
        (("a drum", "beats", "beating"), ("someone", "beats a drum", "beating a drum")),
        ("drumming",),
        (("drum beat", "drum beats"), ("beat of a drum", "beats of a drum")),
    ),
    "coin": Words(
        (("a coin", "drops", "dropping"), ("a coin", "bounces on a table", "bouncing on a table")),
        ("clinking of a coin",),
        (("clink of a coin", "clinks of a coin"),),
    ),
    "cough": Words(
        (("someone", "coughs", "coughing"), ("a person", "coughs", "coughing")),
        ("coughing",),
        (("cough", "coughs"),),
    ),
}  # fmt: skip

WORDING = Wording(
    WORDS,
    adverbs={
        ("loudness", 1): ("loudly", "noisily", "at high volume"),
        ("loudness", -1): ("softly", "quietly", "faintly"),
        ("pitch", 1): ("at a high pitch", "in a high tone"),
        ("pitch", -1): ("at a low pitch", "in a deep tone"),
        ("speed", 1): ("quickly", "rapidly", "at a fast pace"),
        ("speed", -1): ("slowly", "at a slow pace", "unhurriedly"),
    },
    adjectives={
        ("loudness", 1): ("loud", "noisy"),
        ("loudness", -1): ("soft", "quiet", "faint"),
        ("pitch", 1): ("high-pitched", "shrill"),
        ("pitch", -1): ("low-pitched", "deep"),
        ("speed", 1): ("fast", "rapid", "quick"),
        ("speed", -1): ("slow", "unhurried"),
    },
    times={1: ("once",), 2: ("twice", "two times"), 3: ("three times",), 4: ("four times",), 5: ("five times",)},
    several_times=("several times", "repeatedly", "again and again"),
    numbers={1: "a single", 2: "two", 3: "three", 4: "four", 5: "five"},
    several_numbers=("several", "repeated", "a number of"),
    templates={
        "alone": {
            1: (
                "{0c}", "{0n}", "{0n} can be heard", "there is the sound of {0n}", "the sound of {0n}",
                "{0c} and nothing else", "{0n} on its own", "we hear {0n}",
            ),
        },
        "together": {
            2: (
                "{0c} while {1c}", "{0n} and {1n} at the same time", "{0c} as {1c}", "{0n} together with {1n}",
                "{0c} and {1c} simultaneously", "{0n} with {1n} in the background", "{0n} can be heard during {1n}",
                "at the same time {0c} and {1c}",
            ),
            3: (
                "{0c} while {1c} and {2c}", "{0n}, {1n} and {2n} at the same time", "{0n} together with {1n} and {2n}",
                "{0c}, {1c} and {2c}, all at once",
            ),
        },
        "sequence": {
            2: (
                "{0c}, then {1c}", "{0n} followed by {1n}", "first {0c}, and after that {1c}", "after {0n}, {1c}",
                "{1n} after {0n}", "{0c} before {1c}", "{0n}, and then {1n}", "{0c}, and afterwards {1c}",
            ),
            3: (
                "{0c}, then {1c}, and finally {2c}", "{0n} followed by {1n} and then {2n}",
                "first {0c}, then {1c}, then {2c}", "{0n}, then {1n}, and at the end {2n}",
            ),
        },
    },
)  # fmt: skip

OTHER_WORDS = {
    "rain": Words((("drizzle", "comes down", "coming down"),), ("drizzle",)),
    "thunder": Words(
        (("a storm", "growls", "growling"),), ("stormy growling",), (("growl of a storm", "growls of a storm"),)
    ),
    "wind": Words((("a gale", "buffets", "buffeting"),), ("gusty air",)),
    "stream": Words((("a creek", "trickles", "trickling"),), ("trickling liquid",)),
    "drops": Words((("a faucet", "leaks", "leaking"),), ("plopping",), (("plop", "plops"),)),
    "waves": Words((("the ocean", "swells and recedes", "swelling and receding"),), ("breakers",)),
    "fire": Words((("flames", "snap", "snapping"),), ("snapping flames",)),
    "siren": Words((("an ambulance", "blares", "blaring"),), ("blaring of an ambulance",)),
    "telephone": Words((("a handset", "jingles", "jingling"),), ("jingling of a handset",), (("jingle", "jingles"),)),
    "bell": Words((("a gong", "peals", "pealing"),), ("pealing",), (("peal of a gong", "peals of a gong"),)),
    "alarm": Words((("a buzzer", "bleeps", "bleeping"),), ("bleeping",)),
    "horn": Words((("a driver", "toots", "tooting"),), ("tooting",), (("toot", "toots"),)),
    "whistle": Words((("a coach", "tweets a signal", "tweeting a signal"),), ("trilling",), (("trill", "trills"),)),
    "clock": Words((("a watch", "clicks", "clicking"),), ("clicking of a watch",)),
    "engine": Words((("a truck", "purrs", "purring"),), ("throbbing machinery",)),
    "helicopter": Words((("a chopper", "thumps", "thumping"),), ("whirling rotors",)),
    "drill": Words((("a boring tool", "grinds", "grinding"),), ("grinding",)),
    "train": Words((("a locomotive", "chugs", "chugging"),), ("chugging of railway cars",)),
    "vacuum": Words((("a hoover", "drones", "droning"),), ("droning of a hoover",)),
    "saw": Words((("a carpenter", "slices timber", "slicing timber"),), ("slicing of timber",)),
    "bark": Words((("a hound", "woofs", "woofing"),), ("woofing",), (("woof", "woofs"),)),
    "meow": Words(
        (("a kitten", "cries", "crying"),), ("crying of a kitten",), (("cry of a kitten", "cries of a kitten"),)
    ),
    "birds": Words((("sparrows", "warble", "warbling"),), ("warbling",)),
    "crickets": Words((("grasshoppers", "chirr", "chirring"),), ("chirring",)),
    "frog": Words((("a bullfrog", "ribbits", "ribbiting"),), ("ribbiting",), (("ribbit", "ribbits"),)),
    "owl": Words((("a nocturnal raptor", "screeches", "screeching"),), ("screeching",), (("screech", "screeches"),)),
    "cow": Words((("cattle", "bellow", "bellowing"),), ("bellowing",), (("bellow", "bellows"),)),
    "babble": Words((("a man", "chats", "chatting"),), ("chatter",)),
    "applause": Words((("spectators", "cheer with their hands", "cheering with their hands"),), ("ovation",)),
    "laughter": Words((("a child", "giggles", "giggling"),), ("giggling",), (("giggle", "giggles"),)),
    "footsteps": Words((("boots", "tread", "treading"),), ("treading",)),
    "knocking": Words((("a visitor", "raps", "rapping"),), ("rapping",), (("rap", "raps"),)),
    "hammer": Words((("a blacksmith", "pounds iron", "pounding iron"),), ("pounding",), (("clank", "clanks"),)),
    "glass": Words((("a bottle", "smashes", "smashing"),), ("smashing",), (("smash", "smashes"),)),
    "gunshot": Words((("a rifle", "bangs", "banging"),), ("banging",), (("bang", "bangs"),)),
    "snoring": Words((("a sleeping man", "wheezes", "wheezing"),), ("wheezing",), (("wheeze", "wheezes"),)),
    "rooster": Words(
        (("a cockerel", "cries at dawn", "crying at dawn"),),
        ("cockcrow",),
        (("cry of a cockerel", "cries of a cockerel"),),
    ),
    "duck": Words(
        (("a mallard", "gabbles", "gabbling"),), ("gabbling",), (("gabble of a mallard", "gabbles of a mallard"),)
    ),
    "sheep": Words((("a lamb", "baas", "baaing"),), ("baaing",), (("baa", "baas"),)),
    "mosquito": Words((("a gnat", "drones about", "droning about"),), ("whine of a gnat",)),
    "kettle": Words((("steam", "shrieks", "shrieking"),), ("shrieking steam",)),
    "doorbell": Words(
        (("a guest at the entrance", "gets announced", "getting announced"),),
        ("ding-dong",),
        (("ding-dong", "ding-dongs"),),
    ),
    "chainsaw": Words((("a lumberjack", "fells a tree", "felling a tree"),), ("felling of trees",)),
    "typewriter": Words((("a keyboard", "clicks", "clicking"),), ("keystrokes",)),
    "jet": Words((("a plane", "thunders above the roofs", "thundering above the roofs"),), ("din of a plane",)),
    "drum": Words((("a bongo", "booms", "booming"),), ("booming",), (("boom", "booms"),)),
    "coin": Words(
        (("small change", "jangles", "jangling"),), ("jangling",), (("jangle of change", "jangles of change"),)
    ),
    "cough": Words((("a sick man", "hacks", "hacking"),), ("hacking",), (("hack", "hacks"),)),
}

OTHER_WORDING = Wording(
    OTHER_WORDS,
    adverbs={
        ("loudness", 1): ("with great force", "deafeningly"),
        ("loudness", -1): ("barely audibly", "in a hushed way"),
        ("pitch", 1): ("squeakily", "in treble"),
        ("pitch", -1): ("gruffly", "in bass"),
        ("speed", 1): ("hastily", "in a hurry"),
        ("speed", -1): ("sluggishly", "taking its time"),
    },
    adjectives={
        ("loudness", 1): ("deafening", "thunderous"),
        ("loudness", -1): ("hushed", "muted"),
        ("pitch", 1): ("squeaky", "treble"),
        ("pitch", -1): ("gruff", "bass"),
        ("speed", 1): ("hasty", "brisk"),
        ("speed", -1): ("sluggish", "leisurely"),
    },
    times={1: ("one time",), 2: ("on two occasions",), 3: ("thrice",), 4: ("4 times",), 5: ("5 times",)},
    several_times=("many times", "over and over"),
    numbers={1: "one", 2: "a pair of", 3: "a trio of", 4: "a quartet of", 5: "a quintet of"},
    several_numbers=("many", "multiple"),
    templates={
        "alone": {1: ("{0c} alone", "a recording of {0n}", "you can make out {0n}", "only {0n}")},
        "together": {
            2: ("{0n} over {1n}", "{0n} against {1n}", "a mixture of {0n} and {1n}", "{0n} amid {1n}"),
            3: ("a mixture of {0n}, {1n} and {2n}", "{0n} over {1n} and {2n}"),
        },
        "sequence": {
            2: ("{0n}, leading into {1n}", "{0c}; next, {1c}", "as soon as {0c}, {1c}", "{0n} ahead of {1n}"),
            3: ("{0n}, leading into {1n}, leading into {2n}", "{0c}; next, {1c}; last, {2c}"),
        },
    },
)
