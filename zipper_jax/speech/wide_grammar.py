"""A grammar of about 700 words: content words that context hardly predicts, for corpora of many hours."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_NAMES = _words(
    """
    adam alice andrew anna arthur barbara benjamin bernard betty carol caroline charles charlotte clara daniel
    david dennis diana dorothy edward eleanor elizabeth emily emma eric eva florence francis frank frederick
    george gloria grace harold harriet harry helen henry hugo ida isabel jacob james jane jennifer joseph
    julia karl katherine kevin laura leonard lewis linda louise lucy margaret maria martha martin mary matthew
    michael monica nancy nicholas nora oliver olivia oscar patricia patrick paul peter philip rachel ralph
    rebecca richard robert rose ruth samuel sandra sarah simon sophie stephen susan sylvia theodore thomas
    timothy ursula victor victoria vincent virginia walter wendy william
    """
)
_PEOPLE = _words(
    """
    actor artist baker banker barber builder butcher captain carpenter child clerk coach colonel cook cousin
    dancer dentist doctor driver editor engineer farmer fisherman gardener general grandmother guard guest
    hunter judge king lawyer librarian mayor mechanic merchant miner minister musician neighbor nurse officer
    painter pilot plumber poet policeman postman priest prince professor queen sailor scholar secretary
    servant shepherd singer soldier stranger student surgeon tailor teacher tourist traveler uncle visitor
    waiter widow writer
    """
)
_THINGS = _words(
    """
    apple arrow basket battery bell belt bench bicycle blanket boat bone book bottle bowl box bracelet branch
    bread brick bridge broom brush bucket button cabinet cable cake camera candle candy carpet carriage chain
    chair chalk cheese clock cloth coat coffee coin collar compass cookie copper corn cotton cradle crown cup
    curtain desk diamond dish doll door dress drum egg engine envelope feather fence flag flower flute fork
    fountain frame furniture glass glove gold guitar hammer handle hat helmet honey hook horn jacket jewel
    kettle key knife ladder lamp lantern leather letter lock luggage magazine map mask medal medicine mirror
    money mountain needle nest newspaper oven package paint pan paper parcel pearl pen pencil pepper
    photograph piano picture pillow pipe plate pocket potato pump purse puzzle radio rail rice ring rock rope
    rug saddle salt sandwich saw scissors shelf shell shield shirt shoe shovel silk silver soap sofa spoon
    stamp statue stone stove string suitcase sugar sword table tea telescope tent ticket tool towel toy tray
    treasure trumpet umbrella vase vegetable violin wagon wallet watch wheel whistle window wine wire wood
    """
)
_ADJECTIVES = _words(
    """
    ancient angry beautiful big bitter black blue bright broken brown calm cheap clean clever cold common
    crooked curious dark dead deep delicate dirty dry dull dusty easy elegant empty enormous expensive faint
    famous fancy fat fine flat foreign fragile fresh friendly full gentle giant golden good gray great green
    happy hard heavy hollow honest hot huge hungry innocent large lazy light little lonely long loose loud
    lovely lucky modern muddy narrow neat nervous new noble odd old orange pale perfect plain polite poor
    precious pretty proud purple quiet rare red rich rough round rusty sad secret serious shallow sharp shiny
    short silent simple slow small smooth soft solid special square steep sticky straight strange strong sweet
    tall thick thin tiny tired ugly useful warm weak wet white wide wild wise wonderful wooden yellow young
    """
)
_VERBS = _words(
    """
    admired borrowed bought broke brought buried burned carried caught changed checked cleaned collected
    copied counted covered described discovered dropped emptied examined exchanged filled finished fixed
    forgot found gave grabbed held hid ignored improved inspected kept kicked kissed lifted lost loved
    measured mentioned missed moved noticed offered opened ordered painted passed picked planted polished
    prepared promised protected pulled pushed received recognized refused removed repaired replaced returned
    sold scratched searched sent shared showed stole studied threw touched traded trusted used wanted warned
    washed watched wrapped
    """
)
_PLACES = _words(
    """
    airport attic bakery balcony bank barn basement beach bedroom castle cave cellar cemetery chapel church
    city classroom corner cottage desert factory farm forest garage garden gate hall harbor highway hill
    hospital hotel island jungle kitchen laboratory lake library market meadow mill monastery museum office
    orchard palace park prison railroad ranch restaurant river roof school square stable stadium station store
    street studio temple theater tower town tunnel valley village warehouse yard
    """
)
_WHEN = _words(
    """
    yesterday tomorrow today tonight monday tuesday wednesday thursday friday saturday sunday january february
    march april june july august september october november december
    """
)
_HOW = _words(
    """
    carefully quickly slowly quietly suddenly gladly secretly finally often never always rarely
    """
)
_WHERE = ("behind", "beside", "above", "below", "near", "inside", "under", "before", "outside")
_DIGIT = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_THE = ("the",)

# As in `grammar`: rule name -> sampling weight, and its slots.
TEMPLATES: dict[str, tuple[int, tuple[tuple[str, ...], ...]]] = {
    "did": (3, (_THE, _ADJECTIVES, _PEOPLE, _VERBS, _THE, _ADJECTIVES, _THINGS)),
    "did_where": (3, (_NAMES, _VERBS, _THE, _THINGS, _WHERE, _THE, _PLACES)),
    "did_when": (2, (_NAMES, ("and",), _NAMES, _VERBS, _THE, _ADJECTIVES, _THINGS, _WHEN)),
    "how": (2, (_THE, _PEOPLE, _HOW, _VERBS, _THE, _THINGS, ("", *_WHEN))),
    "lies": (2, (_THE, _ADJECTIVES, _THINGS, ("is", "was"), _WHERE, _THE, _ADJECTIVES, _PLACES)),
    "tell": (2, (("ask", "tell", "call", "visit", "meet"), _NAMES, ("about",), _THE, _THINGS, ("", *_WHEN))),
    "address": (1, (_NAMES, ("lives", "works"), ("at",), ("number",), _DIGIT, _DIGIT, _DIGIT, _PLACES, ("street",))),
    "count": (1, (_NAMES, ("has", "had", "needs"), _TENS, _DIGIT[1:], _ADJECTIVES, ("pieces",), ("of",), _THINGS)),
    "digits": (1, (_DIGIT, _DIGIT, _DIGIT, _DIGIT, _DIGIT, _DIGIT)),
}
