"""A small generated shop whose customers' tastes are known: for the demo, the documentation and the tests.

It has what a real one has: a category tree, brands, attributes, descriptions in which products of the same use share
words, a few Chinese titles, prices, a year of events that follow the customers' tastes, a taxonomy in SKOS beside it,
and products that went on sale in the last weeks and that nobody has bought yet.
"""

from __future__ import annotations

import csv
import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

N_CUSTOMERS: Final = 400
N_NEW_PER_LEAF: Final = 2
_START: Final = datetime(2024, 7, 1, tzinfo=UTC)
_END: Final = datetime(2025, 6, 30, tzinfo=UTC)
_LAUNCH_WEEKS: Final = 4

# How much a match adds to the log-odds of a customer taking a product. The category leads, as in real shops.
_CATEGORY_PULL: Final = 3.2
_BRAND_PULL: Final = 1.2
_STYLE_PULL: Final = 1.2
_MATERIAL_PULL: Final = 0.6
_OFF_TASTE: Final = 0.05
"""Share of events that follow nothing but popularity: gifts, mistakes, curiosity."""


@dataclass(frozen=True, slots=True)
class _Type:
    name: str
    chinese: str
    use: str
    price: float


@dataclass(frozen=True, slots=True)
class _Leaf:
    department: str
    name: str
    theme: str
    german: str
    materials: tuple[str, ...]
    uses: tuple[str, ...]
    types: tuple[_Type, ...]

    @property
    def path(self) -> tuple[str, str]:
        return self.department, self.name


_LEAVES: Final = (
    _Leaf(
        "Kitchen",
        "Coffee and Tea",
        "Breakfast table",
        "Kaffee und Tee",
        ("steel", "glass", "ceramic"),
        (
            "Brings out the aroma of freshly roasted beans and loose leaves.",
            "For a slow morning cup with a full, rounded taste.",
            "Made for people who weigh their beans and time the brew.",
        ),
        (
            _Type(
                "pour-over dripper",
                "手冲咖啡滤杯",
                "Holds a paper filter and lets hot water run evenly through the ground coffee",
                24,
            ),
            _Type("moka pot", "摩卡壶", "Brews a strong espresso style coffee on the stove", 32),
            _Type(
                "hand coffee grinder",
                "手摇咖啡磨豆机",
                "Grinds roasted beans from coarse to espresso fine with conical burrs",
                58,
            ),
            _Type("gooseneck kettle", "细口手冲壶", "Pours hot water in a thin, steady stream over coffee or tea", 45),
            _Type("teapot with infuser", "带滤网茶壶", "Steeps loose leaf tea and lifts the leaves out in time", 29),
            _Type("milk frother", "奶泡器", "Whips warm milk into fine foam for cappuccino and latte", 19),
        ),
    ),
    _Leaf(
        "Kitchen",
        "Baking",
        "Breakfast table",
        "Backen",
        ("steel", "silicone", "beech wood"),
        (
            "For crusty bread, soft dough and an even bake.",
            "Flour, butter and an oven are all that is missing.",
            "Releases cakes and loaves cleanly and washes up in a minute.",
        ),
        (
            _Type("loaf tin", "吐司模具", "Bakes sandwich bread and pound cake with straight sides", 18),
            _Type("rolling pin", "擀面杖", "Rolls pastry and pizza dough to an even thickness", 16),
            _Type("proofing basket", "发酵篮", "Gives sourdough its shape and pattern while it rises", 21),
            _Type("cake mould", "蛋糕模", "Turns batter into a ring cake with crisp edges", 23),
            _Type("dough scraper", "刮板", "Portions dough and cleans the floured worktop", 8),
            _Type("mixing bowl set", "打蛋盆套装", "Three nesting bowls for kneading, whisking and resting dough", 34),
        ),
    ),
    _Leaf(
        "Kitchen",
        "Knives and Boards",
        "Cooking",
        "Messer und Bretter",
        ("steel", "oak wood", "bamboo"),
        (
            "Keeps an edge through weeks of chopping vegetables and herbs.",
            "For clean slices and safe, quiet work at the counter.",
            "Balanced for cooks who prepare everything by hand.",
        ),
        (
            _Type("chef's knife", "主厨刀", "A broad blade that rocks through onions, herbs and meat", 69),
            _Type("paring knife", "水果刀", "A short blade to peel fruit and trim vegetables", 22),
            _Type("bread knife", "面包刀", "A serrated blade that saws through crust without crushing the crumb", 39),
            _Type("cutting board", "砧板", "A heavy board with a juice groove for carving and chopping", 36),
            _Type("knife block", "刀架", "Stores six blades upright and keeps their edges apart", 54),
            _Type("sharpening stone", "磨刀石", "Two grits that bring a dull blade back to shaving sharp", 31),
        ),
    ),
    _Leaf(
        "Outdoor",
        "Camping",
        "Nights under the sky",
        "Zelten",
        ("nylon", "aluminium", "cotton canvas"),
        (
            "Packs small, stands up in minutes and keeps the rain outside.",
            "For nights at the lake, at the festival and far from the road.",
            "Tested in wind and drizzle, light enough to carry to the pitch.",
        ),
        (
            _Type("two-person tent", "双人帐篷", "A dome with a waterproof flysheet, vestibule and taped seams", 189),
            _Type("sleeping bag", "睡袋", "Keeps a sleeper warm down to five degrees in a mummy cut", 95),
            _Type(
                "inflatable sleeping mat",
                "充气防潮垫",
                "Insulates from cold ground and rolls to the size of a bottle",
                59,
            ),
            _Type("camping lantern", "露营灯", "Lights the tent with a warm dimmable glow for forty hours", 34),
            _Type("gas camping stove", "露营气炉", "Boils a litre of water in four minutes behind its wind shield", 48),
            _Type("folding camp chair", "折叠露营椅", "A low seat for the campfire that folds into its own bag", 42),
        ),
    ),
    _Leaf(
        "Outdoor",
        "Hiking",
        "Active travel",
        "Wandern",
        ("nylon", "aluminium", "merino wool"),
        (
            "For steep trails, long ridges and sudden showers.",
            "Comfortable from the valley to the summit and back.",
            "Carries the weight where the body bears it best.",
        ),
        (
            _Type("trekking poles", "登山杖", "Adjustable poles that take load off the knees on descents", 64),
            _Type("daypack 25 litres", "25升徒步背包", "A ventilated backpack with rain cover for day hikes", 79),
            _Type("rain jacket", "冲锋衣", "A breathable waterproof shell with an adjustable hood", 129),
            _Type("hiking socks", "徒步袜", "Cushioned socks that prevent blisters on long walks", 17),
            _Type("water bottle", "户外水壶", "Keeps drinks cold on the trail and never leaks in the backpack", 26),
            _Type("headlamp", "头灯", "Lights the path before sunrise with a beam of ninety metres", 38),
        ),
    ),
    _Leaf(
        "Outdoor",
        "Cycling",
        "Active travel",
        "Radfahren",
        ("aluminium", "nylon", "rubber"),
        (
            "For the daily ride to work and the long tour on Sunday.",
            "Mounts without tools and holds tight on cobblestones.",
            "Made for commuters who ride in rain and darkness.",
        ),
        (
            _Type("bike light set", "自行车灯套装", "Front and rear lights that make a cyclist seen from afar", 35),
            _Type("pannier bag", "自行车驮包", "A waterproof bag that clicks onto the bicycle rack", 68),
            _Type("floor pump", "落地打气筒", "Inflates bicycle tyres to eight bar with a clear gauge", 33),
            _Type("bicycle helmet", "骑行头盔", "A ventilated helmet with a dial to fit the rider's head", 74),
            _Type("bike lock", "自行车锁", "A hardened folding lock that keeps thieves from the bicycle", 61),
            _Type("repair kit", "补胎工具", "Tyre levers, patches and a multitool for roadside punctures", 19),
        ),
    ),
    _Leaf(
        "Home",
        "Lighting",
        "Evening at home",
        "Leuchten",
        ("brass", "linen", "glass"),
        (
            "Fills the room with soft light that flatters every evening.",
            "Dims from bright reading light to a glow for late hours.",
            "Throws its light where it is needed and hides the bulb.",
        ),
        (
            _Type("desk lamp", "台灯", "A jointed arm that lights the desk without glare on the screen", 52),
            _Type("floor lamp", "落地灯", "A tall lamp with a shade for the corner beside the sofa", 98),
            _Type("pendant lamp", "吊灯", "Hangs over the dining table and gathers everyone in its light", 84),
            _Type("bedside lamp", "床头灯", "A small dimmable lamp for reading in bed", 39),
            _Type("wall lamp", "壁灯", "Lights the hallway and frees the shelf below", 57),
            _Type("string lights", "灯串", "Twenty warm bulbs for the balcony, shelf or headboard", 22),
        ),
    ),
    _Leaf(
        "Home",
        "Bedding",
        "Evening at home",
        "Bettwäsche",
        ("linen", "cotton", "merino wool"),
        (
            "Breathes in summer, warms in winter and grows softer with every wash.",
            "For deep sleep and a bedroom that looks made without ironing.",
            "Gentle on the skin and free from harsh dyes.",
        ),
        (
            _Type("duvet cover", "被套", "A cover with hidden buttons for the double duvet", 79),
            _Type("pillowcase pair", "枕套一对", "Two cool, smooth cases that stay on the pillow", 29),
            _Type("fitted sheet", "床笠", "A sheet with deep corners that grips the mattress", 44),
            _Type("knitted blanket", "针织毯", "A heavy throw for the sofa and the foot of the bed", 66),
            _Type("quilted bedspread", "绗缝床盖", "Covers the bed by day and adds warmth at night", 88),
            _Type("sleeping pillow", "睡眠枕", "Supports the neck of side and back sleepers", 49),
        ),
    ),
    _Leaf(
        "Home",
        "Storage",
        "Order",
        "Aufbewahrung",
        ("bamboo", "felt", "steel"),
        (
            "Brings order to shelves, drawers and hallways.",
            "Stacks neatly and shows at a glance what is inside.",
            "For small flats in which every corner counts.",
        ),
        (
            _Type("storage basket", "收纳篮", "A basket with handles for toys, laundry and magazines", 24),
            _Type("drawer organiser", "抽屉分隔盒", "Divides a drawer into compartments for cables and cutlery", 19),
            _Type("shoe rack", "鞋架", "Two open tiers for eight pairs in the hallway", 46),
            _Type("coat hook rail", "挂衣钩", "Five sturdy hooks for coats, bags and umbrellas", 33),
            _Type("spice rack", "调料架", "Three steps that keep jars in sight beside the stove", 27),
            _Type("wall shelf", "墙上置物架", "A narrow shelf for books and plants with hidden brackets", 38),
        ),
    ),
    _Leaf(
        "Garden",
        "Hand Tools",
        "Green fingers",
        "Gartenwerkzeug",
        ("steel", "ash wood", "aluminium"),
        (
            "For digging, weeding and planting in heavy soil.",
            "Sits well in the hand and lasts for decades of seasons.",
            "Cuts clean, so that shrubs and roses heal fast.",
        ),
        (
            _Type("garden trowel", "园艺小铲", "Digs planting holes for bulbs, herbs and seedlings", 16),
            _Type("pruning shears", "修枝剪", "Bypass blades that cut roses and branches up to two centimetres", 37),
            _Type("weeding fork", "除草叉", "Lifts dandelions from the soil with their whole root", 18),
            _Type("digging spade", "铁锹", "A forged blade that turns beds and cuts through roots", 49),
            _Type("hedge shears", "绿篱剪", "Wavy blades that hold twigs while trimming the hedge", 43),
            _Type("hand rake", "手耙", "Loosens soil and gathers leaves between the plants", 14),
        ),
    ),
    _Leaf(
        "Garden",
        "Pots and Planters",
        "Green fingers",
        "Töpfe",
        ("terracotta", "zinc", "cotton canvas"),
        (
            "Gives roots room and lets surplus water drain away.",
            "Frost proof on the balcony, handsome on the window sill.",
            "For herbs, ferns and flowers that want a good home.",
        ),
        (
            _Type("plant pot", "花盆", "A pot with saucer for houseplants up to forty centimetres", 19),
            _Type("hanging planter", "吊盆", "Hangs ivy and ferns in front of the window", 26),
            _Type("herb box", "香草种植盒", "Grows basil, thyme and chives on the kitchen sill", 23),
            _Type("balcony planter", "阳台花箱", "Hooks over the railing and holds a row of geraniums", 34),
            _Type("raised bed bag", "种植袋", "A fabric bed for tomatoes and salad on the terrace", 31),
            _Type("orchid pot", "兰花盆", "Lets air and light to the roots of orchids", 21),
        ),
    ),
    _Leaf(
        "Garden",
        "Watering",
        "Green fingers",
        "Bewässerung",
        ("zinc", "brass", "rubber"),
        (
            "Brings water to thirsty plants without drowning them.",
            "Keeps the garden green through a dry July.",
            "Saves water, because it pours slowly and close to the roots.",
        ),
        (
            _Type("watering can", "洒水壶", "Nine litres with a long spout and a fine rose", 32),
            _Type("garden hose 20 metres", "20米花园水管", "Stays supple in the cold and does not kink", 44),
            _Type("spray nozzle", "喷枪", "Seven patterns from mist for seedlings to jet for the patio", 17),
            _Type("plant mister", "喷雾瓶", "A fine mist for ferns and orchids on dry days", 15),
            _Type("drip irrigation set", "滴灌套装", "Waters twenty pots drop by drop while you travel", 53),
            _Type("rain gauge", "雨量计", "Shows how much rain fell and when to water again", 13),
        ),
    ),
    _Leaf(
        "Stationery",
        "Notebooks",
        "Desk",
        "Notizbücher",
        ("paper", "leather", "linen"),
        (
            "Paper that takes ink without bleeding or feathering.",
            "For plans, lists and the thoughts of a long train ride.",
            "Opens flat and keeps its place with two ribbons.",
        ),
        (
            _Type("dotted notebook", "点阵笔记本", "A bullet journal with numbered pages and an index", 18),
            _Type("weekly planner", "周计划本", "Undated weeks on one page and notes on the other", 22),
            _Type("pocket notebook", "口袋笔记本", "A slim notebook that fits every jacket", 9),
            _Type("travel journal", "旅行日记本", "Pages for maps, tickets and writing on the road", 24),
            _Type("sketch pad", "素描本", "Heavy paper for pencil sketches and ink wash", 16),
            _Type("address book", "通讯录", "An alphabetical register for the people who matter", 14),
        ),
    ),
    _Leaf(
        "Stationery",
        "Pens",
        "Desk",
        "Stifte",
        ("brass", "aluminium", "beech wood"),
        (
            "Writes smoothly from the first line and rests well in the hand.",
            "For letters, signatures and pages of notes.",
            "Refillable, so that it stays for years on the desk.",
        ),
        (
            _Type("fountain pen", "钢笔", "A steel nib that glides and takes ink cartridges or a converter", 46),
            _Type("rollerball pen", "宝珠笔", "Liquid ink in an even line that dries fast", 21),
            _Type("mechanical pencil", "自动铅笔", "Advances a fine lead for drafting and notes", 17),
            _Type("brush pen", "软头笔", "A flexible tip for lettering and calligraphy", 12),
            _Type("ink bottle", "墨水瓶", "Fifty millilitres of ink for fountain pens and dip pens", 15),
            _Type("pen case", "笔袋", "Protects five pens and pencils from scratches", 25),
        ),
    ),
    _Leaf(
        "Stationery",
        "Painting",
        "Studio",
        "Malen",
        ("beech wood", "cotton canvas", "paper"),
        (
            "Bright pigments that mix cleanly and stay lightfast.",
            "For first strokes as well as for finished pictures.",
            "Made with painters, from studio to open air.",
        ),
        (
            _Type("watercolour set", "水彩颜料套装", "Twenty-four half pans with a mixing palette", 38),
            _Type("paint brush set", "画笔套装", "Round and flat brushes for watercolour and acrylic", 27),
            _Type("acrylic paint set", "丙烯颜料套装", "Twelve tubes of creamy colour for canvas and wood", 33),
            _Type("stretched canvas", "油画布框", "Primed canvas on a frame for acrylic and oil", 19),
            _Type("table easel", "桌面画架", "Holds a canvas or pad at any angle and folds flat", 47),
            _Type("watercolour paper block", "水彩纸本", "Heavy cold pressed paper that does not buckle when wet", 23),
        ),
    ),
)

_STYLES: Final = {
    "minimalist": "Plain lines, no ornament, nothing too much.",
    "rustic": "An earthy, handmade look with visible marks of the workshop.",
    "colourful": "Cheerful bright colours that lift a grey day.",
    "retro": "A nod to the nineteen fifties with rounded shapes.",
    "technical": "Precise, functional design with every detail engineered.",
}
_BRANDS: Final = {
    "Alderbrook": "Alderbrook works in a small valley mill since 1911.",
    "Bergwind": "Bergwind builds things that survive weather.",
    "Casa Lumi": "Casa Lumi designs in Porto, close to the light.",
    "Dovetail & Sons": "Dovetail & Sons repair for life what they sell.",
    "Eikon": "Eikon draws every piece as if it were the only one.",
    "Fjordlys": "Fjordlys brings northern calm to every day.",
    "Grünwerk": "Grünwerk makes from what grows again.",
    "Haru": "Haru follows the Japanese idea of quiet use.",
    "Ironroot": "Ironroot forges and casts as it was always done.",
    "云杉": "云杉坚持手工制作，经久耐用。",
}
_COLOURS: Final = ("black", "white", "green", "blue", "red", "natural")
_CHINESE_STYLE: Final = {
    "minimalist": "简约",
    "rustic": "乡村风",
    "colourful": "彩色",
    "retro": "复古",
    "technical": "专业",
}
_CHINESE_SHARE: Final = 0.06


@dataclass(frozen=True, slots=True)
class Taste:
    """What one customer likes: leaf categories (whole paths, the best-liked first), brands, and attribute values."""

    categories: tuple[tuple[str, ...], ...]
    brands: tuple[str, ...]
    attributes: Mapping[str, tuple[str, ...]]

    def affinity(self, item: Mapping[str, Any]) -> float:
        """How much an item (a row of ``items.jsonl``) is to this taste; higher is better, 0 is no match at all."""
        path = tuple(item["category_path"])
        pull = 0.0
        if path in self.categories:
            # The second and third interest draw a little less than the first.
            pull += _CATEGORY_PULL - 0.3 * self.categories.index(path)
        pull += _BRAND_PULL * (item["brand"] in self.brands)
        pull += _STYLE_PULL * (item["attributes"]["style"] in self.attributes["style"])
        pull += _MATERIAL_PULL * (item["attributes"]["material"] in self.attributes["material"])
        return pull


@dataclass(frozen=True, slots=True)
class Tastes:
    """The truth behind a generated shop: what its customers like, and which items are new (no event at all)."""

    customers: Mapping[str, Taste]
    new_items: tuple[str, ...]


def generate_shop(folder: str | Path, *, seed: int = 0) -> Tastes:
    """Write a generated shop into a folder: ``items.jsonl``, ``events.csv``, ``categories.ttl`` and ``tastes.json``.

    About 390 products in 15 categories, of which 30 went on sale in the last four weeks and have no event; 400
    customers, whose events over a year follow their tastes. The same seed writes the same bytes. ``tastes.json``
    holds what is returned and is not read by ``load``.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)  # noqa: S311 - a toy shop needs repeatable numbers, not secret ones
    items = _items(rng)
    tastes = {f"c{num:03d}": _taste(rng) for num in range(1, N_CUSTOMERS + 1)}
    events = sorted(_events(rng, items, tastes))
    with (folder / "items.jsonl").open("w", encoding="utf-8") as stream:
        for item in items:
            stream.write(json.dumps(item, ensure_ascii=False) + "\n")
    with (folder / "events.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(("user_id", "item_id", "timestamp", "event"))
        for at, user_id, item_id, kind in events:
            writer.writerow((user_id, item_id, at.isoformat().replace("+00:00", "Z"), kind))
    (folder / "categories.ttl").write_text(_taxonomy(), encoding="utf-8")
    known = Tastes(tastes, tuple(item["item_id"] for item in items if _is_new(item)))
    truth = json.dumps(asdict(known), indent=1, ensure_ascii=False) + "\n"
    (folder / "tastes.json").write_text(truth, encoding="utf-8")
    return known


def _items(rng: random.Random) -> list[dict[str, Any]]:
    """The catalogue in the order of launch; ids say nothing about category or brand."""
    drafts = []
    for leaf in _LEAVES:
        sellers = rng.sample(sorted(_BRANDS), 5)
        for number in range(4 * len(leaf.types) + N_NEW_PER_LEAF):
            kind = leaf.types[number % len(leaf.types)]
            launched = _START - timedelta(days=rng.uniform(1, 200))
            if number >= 4 * len(leaf.types):
                kind = rng.choice(leaf.types)
                launched = _END - timedelta(weeks=rng.uniform(0, _LAUNCH_WEEKS))
            elif rng.random() < 0.4:
                launched = _START + timedelta(days=rng.uniform(0, 300))
            drafts.append((launched.replace(microsecond=0), leaf, kind, rng.choice(sellers)))
    drafts.sort(key=lambda draft: draft[0])
    return [_item(rng, f"P{num:04d}", *draft) for num, draft in enumerate(drafts, start=1)]


def _item(rng: random.Random, item_id: str, launched: datetime, leaf: _Leaf, kind: _Type, brand: str) -> dict[str, Any]:
    style, material, colour = rng.choice(sorted(_STYLES)), rng.choice(leaf.materials), rng.choice(_COLOURS)
    if rng.random() < _CHINESE_SHARE:
        title = f"{brand} {_CHINESE_STYLE[style]}{kind.chinese}"
        description = f"{_CHINESE_STYLE[style]}设计，{kind.chinese}。{kind.use}."
    else:
        title = f"{brand} {style} {material} {kind.name}"
        sentences = [f"{kind.use}.", rng.choice(leaf.uses), _STYLES[style], _BRANDS[brand]]
        description = " ".join([*sentences, f"Made of {material}, in {colour}."])
    return {
        "item_id": item_id,
        "title": title,
        "description": description,
        "category_path": list(leaf.path),
        "brand": brand,
        "attributes": {
            "style": style,
            "material": material,
            "colour": colour,
            "weight_g": round(kind.price * rng.uniform(8, 30)),
            "gift_wrap": rng.random() < 0.3,
        },
        "price": round(kind.price * rng.uniform(0.8, 1.4), 2),
        "available_from": launched.isoformat().replace("+00:00", "Z"),
    }


def _taste(rng: random.Random) -> Taste:
    leaves = rng.sample(_LEAVES, rng.choice((1, 2, 2, 3)))
    materials = sorted({material for leaf in leaves for material in leaf.materials})
    return Taste(
        tuple(leaf.path for leaf in leaves),
        tuple(rng.sample(sorted(_BRANDS), 2)),
        {"style": tuple(rng.sample(sorted(_STYLES), rng.choice((1, 2)))), "material": (rng.choice(materials),)},
    )


def _is_new(item: Mapping[str, Any]) -> bool:
    return datetime.fromisoformat(item["available_from"]) >= _END - timedelta(weeks=_LAUNCH_WEEKS)


_Event = tuple[datetime, str, str, str]


def _events(rng: random.Random, items: Sequence[dict[str, Any]], tastes: Mapping[str, Taste]) -> Iterator[_Event]:
    """Visits of each customer over the year; at each the products on sale are weighed by taste and by popularity."""
    old = [item for item in items if not _is_new(item)]
    launched = [datetime.fromisoformat(item["available_from"]) for item in old]
    popularity = [math.exp(rng.gauss(0, 0.6)) for _ in old]
    for user_id, taste in tastes.items():
        pull = [math.exp(taste.affinity(item)) * liked for item, liked in zip(old, popularity, strict=True)]
        taken: set[int] = set()
        joined = _START + timedelta(days=rng.uniform(0, 200))
        for _ in range(min(60, 6 + int(rng.expovariate(1 / 12)))):
            at = (joined + timedelta(seconds=rng.uniform(0, (_END - joined).total_seconds()))).replace(microsecond=0)
            weights = popularity if rng.random() < _OFF_TASTE else pull
            open_ = [num for num, since in enumerate(launched) if since <= at and num not in taken]
            num = rng.choices(open_, [weights[num] for num in open_])[0]
            yield from _visit(rng, at, user_id, old[num]["item_id"], taste.affinity(old[num]))
            taken.add(num)


def _visit(rng: random.Random, at: datetime, user_id: str, item_id: str, affinity: float) -> Iterator[_Event]:
    """A look; the better the match, the more often it ends in the cart and at the till."""
    yield at, user_id, item_id, "view"
    if rng.random() < 0.35 + 0.08 * affinity:
        yield at + timedelta(minutes=rng.randint(1, 9)), user_id, item_id, "cart"
        if rng.random() < 0.8:
            yield at + timedelta(minutes=rng.randint(10, 30)), user_id, item_id, "buy"


def _taxonomy() -> str:
    """SKOS: each category, found by its label, below a theme that the shop's own tree does not know."""
    lines = [
        "@prefix skos: <http://www.w3.org/2004/02/skos/core#> .",
        "@prefix shop: <https://shop.example/taxonomy/> .",
        "",
    ]
    themes = sorted({leaf.theme for leaf in _LEAVES})
    lines += [f'shop:{_slug(theme)} a skos:Concept ; skos:prefLabel "{theme}"@en .' for theme in themes]
    for leaf in _LEAVES:
        labels = f'skos:prefLabel "{leaf.name}"@en , "{leaf.german}"@de'
        lines.append(f"shop:{_slug(leaf.name)} a skos:Concept ; {labels} ; skos:broader shop:{_slug(leaf.theme)} .")
    return "\n".join(lines) + "\n"


def _slug(label: str) -> str:
    return label.lower().replace(" ", "-")
