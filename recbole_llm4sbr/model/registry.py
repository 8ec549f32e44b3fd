"""Models by name: ours first, then RecBole's sequential models, then `package.module:Class`; and building the model of a run."""

import difflib
import logging
import pkgutil
from typing import Any

import torch
from torch import nn

from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.base.model_names import plain_name
from recbole_llm4sbr.base.recbole import MODELS, import_models
from recbole_llm4sbr.model.adapter import REMEDY, AdaptedRecommender, check_adaptable, has_item_table, own_ways
from recbole_llm4sbr.model.adapter import shares_prefixes as adapter_shares_prefixes
from recbole_llm4sbr.model.backbones import BACKBONES
from recbole_llm4sbr.model.baselines import BASELINES, UntrainedRecommender
from recbole_llm4sbr.model.cold_items import trained_part
from recbole_llm4sbr.model.contract import SessionRecommender
from recbole_llm4sbr.model.intent_files import item_vectors
from recbole_llm4sbr.model.intents import SessionIntents
from recbole_llm4sbr.model.item_init import items_in_text_space, project_from_text, start_from_text
from recbole_llm4sbr.model.own_classes import import_own
from recbole_llm4sbr.model.wrapper import LLM4SBRWrapper

log = logging.getLogger(__name__)

OURS: dict[str, type[SessionRecommender]] = {**BACKBONES, **BASELINES}


def model_class(name: str) -> type[nn.Module]:
    """The class of a model by name.

    Args:
        name: a backbone of ours, a sequential model of RecBole, or `package.module:Class` for your own.

    Raises:
        UserError: there is no such model; the nearest names are named.
    """
    if name in OURS:
        return OURS[name]
    if ":" in name:
        module_name, _, class_name = name.partition(":")
        try:
            found = getattr(import_own(module_name), class_name)
        except (ImportError, AttributeError, ValueError) as error:
            raise UserError(f"model {name!r} cannot be imported ({error}); write it as package.module:Class") from None
    else:
        files = {each.name for each in pkgutil.iter_modules(import_models().__path__)}
        found = getattr(import_models(f"{MODELS}.{name.lower()}"), name, None) if name.lower() in files else None
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        known = [*OURS, *sorted(each for each in dir(import_models()) if each[0].isupper())]
        by_plain = {plain_name(each): each for each in known}
        near = [by_plain[each] for each in difflib.get_close_matches(plain_name(name), by_plain, n=3, cutoff=0.5)]
        raise UserError(
            f"model {name!r} is unknown; " + (f"did you mean {', '.join(near)}?" if near else f"choose from {', '.join(known)}")
        )
    return found


def is_switched(settings: Any) -> bool:
    """Whether settings change a plain model: its item table or the start of it, how it scores, dropout of ours, its loss."""
    return bool(
        settings["items"] != "id"
        or settings["item_init"] != "random"
        or settings["similarity"] != "dot"
        or any(settings[key] for key in ("embedding_dropout", "session_dropout", "label_smoothing"))
    )


def _trains_as_ours(config: Any, kind: type[nn.Module], dataset: Any) -> bool:
    """Whether a plain model that is not ours is trained through the adapter, which leaves padding and candidates out that RecBole counts.

    Not where its class is named by RecBole's module, as the variant `recbole` does, where it is trained against sampled items, where it
    cannot be adapted, or where it is the user's own and its loss, which may have parts of its own, need not change.
    """
    if issubclass(kind, SessionRecommender) or is_switched(config) or config["cold_items"]:
        return True
    if config["given"]["model"].startswith("recbole.") or config["loss_type"] == "BPR":
        return False
    own = not kind.__module__.startswith("recbole.")
    if config["repeatable"] and own:
        return False
    try:
        check_adaptable(kind)
        if own and (ways := own_ways(kind, config, dataset)):
            raise UserError(f"its {' and '.join(ways)} are not the adapter's")
    except UserError as error:
        if not config["repeatable"]:
            log.warning(
                "%s is trained with the session's items as candidates, and tested without them (%s)",
                kind.__name__,
                str(error).partition(";")[0],
            )
        return False
    return True


def shares_prefixes(config: Any, dataset: Any) -> bool:
    """Whether a run trains its model on all prefixes of a session in one pass, so that its training rows are sessions.

    Not where each row of the raw files is a row as it is, and not RecBole's own class in RecBole's own training.

    Args:
        config: RecBole's config of the run.
        dataset: RecBole's dataset of the training part, a row for each prefix.
    """
    kind = model_class(config["given"]["model"])
    if config["train_targets"] != "all" or config["session_rule"] == "rows":
        return False
    if issubclass(kind, AdaptedRecommender):  # of one class of RecBole's, also when it is plain
        kind = getattr(import_models(f"{MODELS}.{kind.__name__.lower()}"), kind.__name__)
    elif issubclass(kind, SessionRecommender):
        encode, prefixes = (
            next(at for at, each in enumerate(kind.__mro__) if name in vars(each)) for name in ("encode", "encode_prefixes")
        )
        # a class that changes `encode` alone, as TAGNN does SR-GNN's, would be trained by what it extends
        return prefixes <= encode and kind.__mro__[prefixes] is not SessionRecommender
    return adapter_shares_prefixes(kind, config) and (config["llm4sbr"] or _trains_as_ours(config, kind, dataset))


def check_stock(model: type[nn.Module], settings: Any) -> None:
    """Refuse RecBole's own model class where its training may never end.

    Raises:
        UserError: names the setting and the next step.
    """
    own = model.__module__.startswith("recbole.") and not settings["llm4sbr"] and not is_switched(settings)
    if own and model.__name__ == "FEARec" and settings["contrast"] in ("us", "su", "us_x"):
        raise UserError(
            f"RecBole's own FEARec may never return from a step with contrast={settings['contrast']}, where all sessions of a target are "
            f"alike; name it --model=FEARec, or set --contrast=un"
        )


def check_wrappable(model: type[nn.Module]) -> None:
    """Refuse a model class that LLM4SBR cannot enhance, and whose item table and score cannot be changed.

    Raises:
        UserError: names the reason and the next step.
    """
    if issubclass(model, UntrainedRecommender):
        raise UserError(f"{model.__name__} has no backbone to enhance or to switch; leave llm4sbr=false and the switches alone")
    if not issubclass(model, SessionRecommender):
        check_adaptable(model)


def check_buildable(model: type[nn.Module], settings: Any) -> None:
    """Refuse a model class that `build_model` could not build with these settings.

    Raises:
        UserError: it cannot be enhanced or changed, or it cannot be kept from ranking items that it was never trained on.
    """
    if settings["llm4sbr"] or is_switched(settings):
        check_wrappable(model)
    elif settings["cold_items"] and not issubclass(model, SessionRecommender):
        try:
            check_adaptable(model)
        except UserError as error:
            reason = str(error).partition(": ")[2].partition(";")[0]
            raise UserError(
                f"{model.__name__} would rank items that it was never trained on, and cannot be wrapped ({reason}); take another model, or "
                f"leave cold_items=false"
            ) from None


def build_model(config: Any, dataset: Any) -> nn.Module:
    """The model of a run: with `llm4sbr` the wrapped backbone, else the backbone. It is built over the items that training has; cold
    items are added to it.

    Without `llm4sbr`, switches and cold items a class named with its module (`recbole.model.sequential_recommender:SASRec`) stays as
    RecBole has it.
    """
    trained = trained_part(dataset)
    model = _build(config, trained)
    if cold := dataset.item_num - trained.item_num:
        assert isinstance(model, SessionRecommender)  # `check_buildable`
        texts = item_vectors(config, dataset)[trained.item_num :] if model.reads_cold else torch.zeros(cold, 0)
        model.take_cold(texts)
    return model


def _check_own(kind: type[nn.Module], config: Any, dataset: Any) -> None:
    """Refuse to enhance or switch a class of the user's own whose scores the adapter would replace; warn where it replaces its loss.

    Raises:
        UserError: names both ways to go on.
    """
    ways = own_ways(kind, config, dataset)
    if "scores" in ways:
        raise UserError(
            f"{kind.__name__} cannot be wrapped: its full_sort_predict is not the product of what forward() returns and item_embedding, so "
            f"that it would be another model than the plain one; {REMEDY}"
        )
    if "loss" in ways:
        log.warning("%s is trained by cross-entropy over the catalogue here, and not by its own calculate_loss", kind.__name__)


def _made(kind: type[nn.Module], config: Any, dataset: Any) -> nn.Module:
    """A model of a class.

    Raises:
        UserError: the class refuses the settings, as one whose heads do not divide the hidden size.
    """
    fields = config["selected_features"] or []
    if missing := [each for each in fields if each not in dataset.field2type]:
        raise UserError(
            f"{kind.__name__} reads selected_features={fields}, and {missing[0]!r} is not loaded; add "
            f"--load_col='{{item: [item_id, {', '.join(fields)}]}}', columns of the .item file"
        )
    try:
        model: nn.Module = kind(config, dataset)
    except ValueError as error:
        raise UserError(f"{kind.__name__} cannot be made with these settings: {error}") from error
    return _with_loss_of_any_batch(model) if isinstance(getattr(model, "MASK_INDEX", None), str) else model


def _with_loss_of_any_batch(model: Any) -> nn.Module:
    """RecBole's BERT4Rec, whose loss of a batch in which nothing is masked is no longer 0/0 but 0."""
    own = model.calculate_loss

    def calculate_loss(batch: Any) -> torch.Tensor:
        masked = bool((batch[model.MASK_INDEX] > 0).any())
        loss: torch.Tensor = own(batch) if masked else 0 * model.item_embedding.weight.sum()
        return loss

    model.calculate_loss = calculate_loss
    return model  # type: ignore[no-any-return]


def _build(config: Any, dataset: Any) -> nn.Module:
    kind = model_class(config["given"]["model"])
    if not config["llm4sbr"] and not _trains_as_ours(config, kind, dataset):
        return _made(kind, config, dataset)
    check_buildable(kind, config)
    model = _made(kind, config, dataset)
    changed = config["llm4sbr"] or is_switched(config) or config["cold_items"]
    if not changed and not has_item_table(model):
        return model  # a class of the user's own, without a table that the adapter could score
    if not isinstance(model, SessionRecommender) and not kind.__module__.startswith("recbole."):
        _check_own(kind, config, dataset)
    backbone = model if isinstance(model, SessionRecommender) else AdaptedRecommender(config, dataset, model)
    if config["items"] == "text":
        project_from_text(backbone, config, dataset)
    elif config["item_init"] != "random":
        start_from_text(backbone, config, dataset)
    if not config["llm4sbr"]:
        return backbone
    intents, texts = SessionIntents.from_dataset(config, dataset), items_in_text_space(config, dataset, backbone)
    return LLM4SBRWrapper(config, dataset, backbone, intents, texts)
