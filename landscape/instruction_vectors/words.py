"""In-context tasks that come with the package: lists of common words, written for it.

Each list is a sentence that explains the task, and pairs "input:output" parted by commas. Most outputs are one token of
most tokenizers. Names of capitals are given where they are usual in English.
"""

WORDS = {
    "adjective to adverb": (
        "Turn the adjective into an adverb.",
        "quick:quickly, slow:slowly, clear:clearly, easy:easily, usual:usually, careful:carefully, "
        "happy:happily, sudden:suddenly, final:finally, real:really, simple:simply, recent:recently, "
        "complete:completely, direct:directly, exact:exactly, equal:equally, actual:actually, "
        "general:generally, natural:naturally, normal:normally, perfect:perfectly, rapid:rapidly, "
        "serious:seriously, similar:similarly, strong:strongly, successful:successfully, total:totally, "
        "typical:typically, near:nearly, main:mainly, large:largely, high:highly, full:fully, deep:deeply, "
        "wide:widely, close:closely, quiet:quietly, gentle:gently, great:greatly, short:shortly, "
        "effective:effectively, frequent:frequently, common:commonly, certain:certainly, probable:probably, "
        "possible:possibly, immediate:immediately, entire:entirely, absolute:absolutely, relative:relatively, "
        "specific:specifically, original:originally, initial:initially, eventual:eventually, "
        "efficient:efficiently, accurate:accurately, significant:significantly, regular:regularly",
    ),
    "antonyms": (
        "Give the opposite of the word.",
        "hot:cold, big:small, up:down, left:right, fast:slow, young:old, happy:sad, light:dark, early:late, "
        "good:bad, high:low, hard:soft, rich:poor, strong:weak, open:closed, full:empty, wet:dry, "
        "clean:dirty, true:false, wide:narrow, thick:thin, loud:quiet, day:night, war:peace, love:hate, "
        "buy:sell, win:lose, push:pull, in:out, on:off, first:last, long:short, near:far, inside:outside, "
        "start:end, black:white, north:south, east:west, male:female, above:below, before:after, "
        "always:never, more:less, top:bottom, tall:short, success:failure, friend:enemy, question:answer, "
        "past:future, heaven:hell, hello:goodbye, front:back, sick:healthy, public:private, same:different, "
        "odd:even, smooth:rough, deep:shallow, dead:alive, simple:complex, positive:negative, victory:defeat, "
        "increase:decrease, major:minor, maximum:minimum",
    ),
    "capital letters": (
        "Write the word with a capital letter.",
        "house:House, tree:Tree, world:World, water:Water, school:School, student:Student, city:City, "
        "country:Country, history:History, science:Science, music:Music, art:Art, river:River, "
        "mountain:Mountain, family:Family, health:Health, food:Food, energy:Energy, power:Power, life:Life, "
        "love:Love, death:Death, war:War, peace:Peace, light:Light, earth:Earth, sun:Sun, moon:Moon, "
        "star:Star, space:Space, time:Time, year:Year, day:Day, night:Night, book:Book, story:Story, "
        "language:Language, law:Law, state:State, market:Market, money:Money, research:Research, "
        "theory:Theory, method:Method, model:Model, system:System, network:Network, computer:Computer, "
        "machine:Machine, green:Green, black:Black, white:White, red:Red, blue:Blue, north:North, south:South",
    ),
    "capitals": (
        "Name the capital of the country.",
        "France:Paris, Japan:Tokyo, Italy:Rome, Spain:Madrid, Germany:Berlin, Russia:Moscow, China:Beijing, "
        "Egypt:Cairo, Greece:Athens, Austria:Vienna, Poland:Warsaw, Norway:Oslo, Sweden:Stockholm, "
        "Finland:Helsinki, Denmark:Copenhagen, Portugal:Lisbon, Ireland:Dublin, England:London, Cuba:Havana, "
        "Peru:Lima, Chile:Santiago, Iraq:Baghdad, Iran:Tehran, Turkey:Ankara, Kenya:Nairobi, "
        "Thailand:Bangkok, Hungary:Budapest, Belgium:Brussels, Canada:Ottawa, Syria:Damascus, Lebanon:Beirut, "
        "Afghanistan:Kabul, Vietnam:Hanoi, Indonesia:Jakarta, Philippines:Manila, Scotland:Edinburgh, "
        "Netherlands:Amsterdam, Israel:Jerusalem, Taiwan:Taipei, Venezuela:Caracas, Libya:Tripoli, "
        "Nepal:Kathmandu, Bangladesh:Dhaka, Czechia:Prague, Switzerland:Bern, Australia:Canberra, "
        "Wales:Cardiff, Romania:Bucharest, Serbia:Belgrade, Jordan:Amman, Qatar:Doha, Ghana:Accra, "
        "Senegal:Dakar, Tunisia:Tunis, Bulgaria:Sofia, Croatia:Zagreb, Zimbabwe:Harare, Ukraine:Kyiv",
    ),
    "colours": (
        "Name the usual colour of the thing.",
        "grass:green, snow:white, blood:red, coal:black, banana:yellow, lemon:yellow, milk:white, sky:blue, "
        "tomato:red, tar:black, chocolate:brown, leaf:green, cucumber:green, lettuce:green, spinach:green, "
        "broccoli:green, peas:green, frog:green, emerald:green, ruby:red, sapphire:blue, strawberry:red, "
        "cherry:red, rose:red, fire engine:red, carrot:orange, pumpkin:orange, salt:white, sugar:white, "
        "cotton:white, flour:white, rice:white, swan:white, polar bear:white, bone:white, crow:black, "
        "raven:black, night:black, ink:black, soot:black, ebony:black, canary:yellow, sunflower:yellow, "
        "corn:yellow, butter:yellow, ocean:blue, sea:blue, blueberry:blue, coffee:brown, mud:brown, "
        "wood:brown, soil:brown, lime:green, kiwi:green, ketchup:red, brick:red, cloud:white, paper:white, "
        "lavender:purple, plum:purple",
    ),
    "comparatives": (
        "Give the comparative of the adjective.",
        "big:bigger, small:smaller, tall:taller, short:shorter, long:longer, fast:faster, slow:slower, "
        "strong:stronger, weak:weaker, young:younger, old:older, high:higher, low:lower, deep:deeper, "
        "wide:wider, hard:harder, soft:softer, hot:hotter, cold:colder, warm:warmer, cool:cooler, "
        "rich:richer, poor:poorer, good:better, bad:worse, easy:easier, early:earlier, late:later, "
        "happy:happier, heavy:heavier, light:lighter, dark:darker, bright:brighter, large:larger, "
        "great:greater, cheap:cheaper, clean:cleaner, clear:clearer, close:closer, fine:finer, full:fuller, "
        "healthy:healthier, hungry:hungrier, kind:kinder, loud:louder, narrow:narrower, near:nearer, "
        "new:newer, nice:nicer, quick:quicker, quiet:quieter, safe:safer, sharp:sharper, simple:simpler, "
        "smart:smarter, smooth:smoother, thick:thicker, thin:thinner, tight:tighter, wise:wiser, "
        "broad:broader, rare:rarer",
    ),
    "next letter": (
        "Give the next letter of the alphabet.",
        "a:b, b:c, c:d, d:e, e:f, f:g, g:h, h:i, i:j, j:k, k:l, l:m, m:n, n:o, o:p, p:q, q:r, r:s, s:t, t:u, "
        "u:v, v:w, w:x, x:y, y:z, A:B, B:C, C:D, D:E, E:F, F:G, G:H, H:I, I:J, J:K, K:L, L:M, M:N, N:O, O:P, "
        "P:Q, Q:R, R:S, S:T, T:U, U:V, V:W, W:X, X:Y, Y:Z",
    ),
    "past tense": (
        "Give the past tense of the verb.",
        "walk:walked, go:went, see:saw, eat:ate, run:ran, take:took, make:made, give:gave, come:came, "
        "find:found, think:thought, tell:told, become:became, leave:left, feel:felt, bring:brought, "
        "begin:began, keep:kept, hold:held, write:wrote, stand:stood, hear:heard, mean:meant, meet:met, "
        "pay:paid, sit:sat, speak:spoke, lead:led, grow:grew, lose:lost, fall:fell, send:sent, build:built, "
        "break:broke, spend:spent, drive:drove, buy:bought, wear:wore, choose:chose, play:played, "
        "work:worked, call:called, ask:asked, need:needed, help:helped, start:started, move:moved, "
        "live:lived, believe:believed, happen:happened, include:included, continue:continued, change:changed, "
        "watch:watched, follow:followed, stop:stopped, create:created, open:opened, win:won, teach:taught",
    ),
    "plurals": (
        "Give the plural of the word.",
        "cat:cats, dog:dogs, house:houses, tree:trees, book:books, child:children, man:men, woman:women, "
        "foot:feet, tooth:teeth, mouse:mice, city:cities, country:countries, box:boxes, church:churches, "
        "wife:wives, life:lives, leaf:leaves, story:stories, car:cars, table:tables, chair:chairs, "
        "river:rivers, bird:birds, apple:apples, bus:buses, class:classes, baby:babies, lady:ladies, "
        "army:armies, student:students, teacher:teachers, window:windows, door:doors, road:roads, year:years, "
        "day:days, person:people, knife:knives, shelf:shelves, star:stars, hand:hands, eye:eyes, cell:cells, "
        "plant:plants, animal:animals, village:villages, king:kings, queen:queens, number:numbers, "
        "word:words, idea:ideas, island:islands, mountain:mountains, family:families, body:bodies, "
        "party:parties, theory:theories, planet:planets, atom:atoms",
    ),
    "present participle": (
        "Give the -ing form of the verb.",
        "walk:walking, go:going, see:seeing, eat:eating, run:running, take:taking, make:making, give:giving, "
        "come:coming, find:finding, think:thinking, tell:telling, become:becoming, leave:leaving, "
        "feel:feeling, bring:bringing, keep:keeping, hold:holding, write:writing, stand:standing, "
        "hear:hearing, meet:meeting, pay:paying, sit:sitting, speak:speaking, lead:leading, grow:growing, "
        "lose:losing, fall:falling, send:sending, build:building, break:breaking, spend:spending, "
        "drive:driving, buy:buying, wear:wearing, choose:choosing, play:playing, work:working, call:calling, "
        "ask:asking, help:helping, start:starting, move:moving, live:living, change:changing, watch:watching, "
        "follow:following, stop:stopping, create:creating, open:opening, win:winning, teach:teaching, "
        "learn:learning, read:reading, sleep:sleeping",
    ),
}
