"""Language codes: one form for what corpora call a language, the form that Whisper knows.

Corpora write locales (`nb_no`, `es_419`, `zh-CN`, `cmn_hans_cn`), codes of three letters or English
names. The table is Whisper's (openai/whisper, tokenizer.py); three-letter codes are ISO 639-2 and
639-3, with the individual languages that speakers of a macrolanguage usually mean.
"""

from __future__ import annotations

import re

_TABLE = """
en eng english; zh zho chi cmn chinese mandarin; de deu ger german; es spa spanish castilian
ru rus russian; ko kor korean; fr fra fre french; ja jpn japanese; pt por portuguese; tr tur turkish
pl pol polish; ca cat catalan valencian; nl nld dut dutch flemish; ar ara arb arabic; sv swe swedish
it ita italian; id in ind indonesian; hi hin hindi; fi fin finnish; vi vie vietnamese
he iw heb hebrew; uk ukr ukrainian; el ell gre greek; ms msa may zsm malay; cs ces cze czech
ro mo ron rum mol romanian moldavian moldovan; da dan danish; hu hun hungarian; ta tam tamil
no nb nor nob norwegian; th tha thai; ur urd urdu; hr hrv scr croatian; bg bul bulgarian
lt lit lithuanian; la lat latin; mi mri mao maori; ml mal malayalam; cy cym wel welsh
sk slk slo slovak; te tel telugu; fa fas per pes persian farsi; lv lav lvs latvian; bn ben bengali
sr srp scc serbian; az aze azj azerbaijani; sl slv slovenian; kn kan kannada; et est ekk estonian
mk mkd mac macedonian; br bre breton; eu eus baq basque; is isl ice icelandic; hy hye arm armenian
ne nep npi nepali; mn mon khk mongolian; bs bos bosnian; kk kaz kazakh; sq sqi alb als albanian
sw swa swh swahili; gl glg galician; mr mar marathi; pa pan punjabi panjabi
si sin sinhala sinhalese; km khm khmer; sn sna shona; yo yor yoruba; so som somali
af afr afrikaans; oc oci occitan; ka kat geo georgian; be bel belarusian; tg tgk tajik
sd snd sindhi; gu guj gujarati; am amh amharic; yi ji yid ydd yiddish; lo lao; uz uzb uzn uzbek
fo fao faroese; ht hat haitian,creole haitian; ps pus pbu pbt pashto pushto; tk tuk turkmen
nn nno nynorsk; mt mlt maltese; sa san sanskrit; lb ltz luxembourgish letzeburgesch
my mya bur myanmar burmese; bo bod tib tibetan; tl tgl fil tagalog filipino; mg mlg plt malagasy
as asm assamese; tt tat tatar; haw hawaiian; ln lin lingala; ha hau hausa; ba bak bashkir
jw jv jav javanese; su sun sundanese; yue cantonese
"""
_LOCALE = re.compile(r"([a-z]{2,3})([-_][a-z]{4})?([-_]([a-z]{2}|[0-9]{3}))?", re.IGNORECASE)
"""Language, script and region."""


def _codes() -> dict[str, str]:
    found: dict[str, str] = {}
    for entry in _TABLE.replace("\n", ";").split(";"):
        words = [word.replace(",", " ") for word in entry.split()]
        found |= dict.fromkeys(words, words[0] if words else "")
    return found


CODES = _codes()
"""Code, other code or English name -> Whisper's code, all in small letters."""


def language_code(word: str | None) -> str | None:
    """Return Whisper's code of a language that a corpus names; None for none.

    A locale of another language becomes the code of that language (`ga-IE` is `ga`); any other
    word stays as it is.
    """
    if word is None or not word.strip():
        return None
    name = word.strip().lower()
    if name in CODES:
        return CODES[name]
    locale = _LOCALE.fullmatch(name)
    if locale is None:
        return word.strip()
    if "-" not in name and "_" not in name:
        return word.strip()
    return CODES.get(locale[1], locale[1])
