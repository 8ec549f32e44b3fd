"""Verb `inspect`: sessions looked at whole."""

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.outputs import CASES, check_output
from recbole_llm4sbr.base.settings import load_settings, recbole_defaults
from recbole_llm4sbr.cli.parsing import OVERWRITE, Arguments, Option, Verb
from recbole_llm4sbr.data.remembered import of_files_alone

USAGE = """\
usage: recbole-llm4sbr inspect --dataset=NAME (--session=ID | --random=N) [--html=FILE.html] [--key=value ...]
       recbole-llm4sbr inspect --checkpoints=a.pth[,b.pth] (--session=ID | --random=N | --best=N | --worst=N) [--html=FILE.html]

Shows sessions whole. Of each: its items and its target; for every view the prompt, the LLM's raw answer, the name that was found in it, and
the items nearest to that name, with their similarities (those of the session and the target are marked); for every checkpoint the target's
rank, the five best recommendations and, under fusion=gate, the gates. No LLM is called and nothing is trained. Without checkpoints it shows
what `infer` made; type the settings that `infer` was given.

  recbole-llm4sbr inspect --dataset=ml-100k --random=3                                    what did the LLM make of some sessions?
  recbole-llm4sbr inspect --checkpoints=saved/A/SRGNN.pth --session=186_6                 and what did the model make of that?
  recbole-llm4sbr inspect --checkpoints=plain.pth,llm4sbr.pth --best=5 --html=best.html   where do intents help most? --worst: harm?

--best and --worst go by the difference of the two ranks over the test part; with one checkpoint by its ranks. --random draws from the test
part with the setting `seed`: --seed=7 draws others. With checkpoints, all settings come from them (of intents: from the first that reads
some), and only what differs now is typed, as --atomic_path.
"""
_CHOICES = ("session", "random", "best", "worst")


def run(arguments: Arguments) -> int:
    """Choose sessions, gather what is known of them, print or write it."""
    options, checkpoints = arguments.options, arguments.options["checkpoints"] or []
    chosen = [f"--{name}" for name in _CHOICES if options[name] is not None]
    if len(chosen) != 1:
        said = f"not {' and '.join(chosen)} at once" if chosen else "to say which sessions it shall show"
        raise UserError(f"inspect needs one of --session=ID, --random=N, --best=N and --worst=N, {said}")
    if chosen[0] in ("--best", "--worst") and not checkpoints:
        raise UserError(f"{chosen[0]} goes by ranks; name one or two checkpoints, as --checkpoints=plain.pth,llm4sbr.pth")
    if checkpoints and arguments.config_files:
        raise UserError("inspect takes its settings from the checkpoints; name what differs now as --key=value")
    if options["html"]:
        check_output("html", options["html"], CASES, [*checkpoints, *arguments.config_files], options["overwrite"])
    settings = dict(arguments.settings)
    if not checkpoints:
        settings = load_settings(config_files=arguments.config_files, overrides=settings, recall=of_files_alone)
    from recbole_llm4sbr.recommend.cases import Inspector
    from recbole_llm4sbr.recommend.cases_page import write_page
    from recbole_llm4sbr.recommend.cases_text import describe
    from recbole_llm4sbr.recommend.ranking import load_rankers

    if checkpoints:
        seed, named = settings.pop("seed", None), settings.pop("model", None)
        rankers = load_rankers(checkpoints, [named] if named else [], **settings)
        inspector = Inspector.of_models(rankers)
        settings = rankers[0].settings if seed is None else {**rankers[0].settings, "seed": seed}
    else:
        inspector = Inspector(settings)
    seed = settings.get("seed", recbole_defaults(settings["model"])["seed"])
    if options["session"] is not None:
        sessions = [inspector.find(options["session"])]
    elif options["random"] is not None:
        sessions = inspector.draw(options["random"], seed)
    else:
        best = options["best"] is not None
        sessions = inspector.extreme(options["best"] if best else options["worst"], best)
    cases = inspector.cases(sessions)
    if options["html"]:
        write_page(options["html"], cases, "Sessions looked at whole")
        print(f"written: {options['html']}, {len(cases)} session" + ("s" if len(cases) > 1 else ""))
    else:
        print(f"\n\n{'=' * 96}\n".join(describe(case) for case in cases))
    return 0


VERB = Verb(
    "inspect",
    "sessions looked at whole: prompts, answers, intents, ranks, gates",
    USAGE,
    run,
    (
        Option("session", "one session by its id, of any part"),
        Option("random", "so many sessions of the test part, drawn with the setting `seed`", None, "whole", least=1),
        Option("best", "so many test sessions whose target's rank improves most", None, "whole", least=1),
        Option("worst", "so many test sessions whose target's rank worsens most", None, "whole", least=1),
        Option(
            "checkpoints",
            "files that `train` named, with commas; ranks are compared from the first to the second",
            None,
            "names",
        ),
        Option("html", "write one page to this .html file instead of printing"),
        OVERWRITE,
    ),
)
