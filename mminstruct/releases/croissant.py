"""The metadata of a release in the Croissant format (MLCommons, version 1.1).

**Source:** https://docs.mlcommons.org/croissant/docs/croissant-spec-1.1.html
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from mminstruct.releases.markdown import to_line
from mminstruct.releases.notices import use_line
from mminstruct.releases.origin import Contents, Origin, all_sources
from mminstruct.releases.pages import Page
from mminstruct.resources import count_of
from mminstruct.rows.columns import ROW

_PARQUET = "application/x-parquet"
_JSON = {"@type": "@json"}
_IN_A_LANGUAGE = {"@container": "@language"}
# As the specification has it; all other terms are Croissant's own.
_OTHER_TERMS = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", **_JSON},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "description": _IN_A_LANGUAGE,
    "examples": {"@id": "cr:examples", **_JSON},
    "name": _IN_A_LANGUAGE,
    "sc": "https://schema.org/",
}
_TERMS = """
@language @vocab arrayShape citeAs column conformsTo containedIn cr rai data dataType dct
description equivalentProperty examples extract field fileProperty fileObject fileSet format
includes isArray isLiveDataset jsonPath key md5 name parentField path recordSet references regex
repeated replace samplingRate sc separator source subField transform
"""
_CONTEXT = {term: _OTHER_TERMS.get(term, f"cr:{term}") for term in _TERMS.split()}
_DATA_TYPES = {
    pa.types.is_string: "sc:Text",
    pa.types.is_large_string: "sc:Text",
    pa.types.is_integer: "sc:Integer",
    pa.types.is_floating: "sc:Float",
    pa.types.is_boolean: "sc:Boolean",
}


def croissant(pages: Sequence[Page], name: str, origin: Origin, contents: Contents) -> str:
    """The file croissant.json: Croissant 1.1 with the fields of its RAI extension that apply.

    Columns of types that Croissant has no word for are left out.
    """
    version = hashlib.sha256("".join(sorted(f.sha256 for f in contents.files)).encode())
    owner = (origin.repo_id or "").partition("/")[0]
    value = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": [
            "http://mlcommons.org/croissant/1.1",
            "http://mlcommons.org/croissant/RAI/1.0",
        ],
        "name": to_line(origin.repo_id or name),
        "description": " ".join([origin.title + ".", *(to_line(page.about) for page in pages)]),
        "license": _license_urls(origin),
        "creator": {"@type": "sc:Organization", "name": owner}
        if owner
        else {
            "@type": "sc:Organization",
            "name": "mminstruct",
            "url": "https://pypi.org/project/mminstruct/",
        },
        "citeAs": "\n\n".join(dict.fromkeys(s.citation for s in origin.sources if s.citation))
        or to_line(origin.title),
        "url": f"https://huggingface.co/datasets/{origin.repo_id}" if origin.repo_id else None,
        "datePublished": origin.written_on.isoformat() if origin.written_on else None,
        "version": f"1.0.0+{version.hexdigest()[:12]}",
        "inLanguage": "en",
        "keywords": [
            "synthetic",
            "instruction-tuning",
            *sorted({s.modality for s in origin.sources}),
        ],
        "isBasedOn": list(dict.fromkeys(source.homepage for source in all_sources(origin))),
        "rai:dataCollection": "A language model was shown annotations that people made of "
        f"{origin.media}, and wrote conversations as if it saw them. Answers that could not be "
        "read, gave the annotations away or repeated themselves were left out.",
        "rai:dataCollectionType": ["Synthetic data"],
        "rai:machineAnnotationTools": [f"{to_line(origin.model)} ({origin.backend})", "mminstruct"],
        "rai:dataUseCases": [to_line(page.uses) for page in pages],
        "rai:dataLimitations": [
            *(to_line(page.limits) for page in pages),
            "Machine-written, and by a writer that saw no pixels: expect mistakes.",
            use_line(contents.use),
        ],
        "rai:dataBiases": [
            f"Those of the annotations of {' and '.join(s.title for s in all_sources(origin))}, "
            f"and those of {to_line(origin.model)}."
        ],
        "rai:personalSensitiveInformation": [
            "Annotations describe people in photos or motions by their looks and doings. Credits "
            "of images name their authors where the source does."
        ],
        "distribution": _distribution(contents),
        "recordSet": [_record_set(kind, contents.features.arrow_schema) for kind in contents.rows],
    }
    return json.dumps(_drop_empty(value), indent=2, ensure_ascii=False) + "\n"


def _license_urls(origin: Origin) -> list[str]:
    """The licence's text, or what each part is under."""
    entry = origin.registry.license(origin.verdict.license)
    if entry is not None:
        return [entry.url]
    return list(
        dict.fromkeys(part.by.url if part.by else "LICENSE" for part in origin.verdict.parts)
    )


def _distribution(contents: Contents) -> list[dict[str, Any]]:
    """Every file with its digest, and the files of each type as one."""
    files = [
        {
            "@type": "cr:FileObject",
            "@id": file.path,
            "name": file.path.rpartition("/")[2],
            "description": f"{count_of(file.rows, 'row')} of type {file.type}, split {file.split}",
            "contentUrl": file.path,
            "contentSize": f"{file.size_bytes} B",
            "encodingFormat": _PARQUET,
            "sha256": file.sha256,
        }
        for file in contents.files
    ]
    sets = [
        {
            "@type": "cr:FileSet",
            "@id": f"{kind}-files",
            "name": f"{kind}-files",
            "description": f"all Parquet files of type {kind}",
            "encodingFormat": _PARQUET,
            "includes": f"data/{kind}/*.parquet",
        }
        for kind in contents.rows
    ]
    return [*files, *sets]


def _record_set(kind: str, schema: pa.Schema) -> dict[str, Any]:
    return {
        "@type": "cr:RecordSet",
        "@id": kind,
        "name": kind,
        "description": f"rows of type {kind}",
        "key": {"@id": f"{kind}/id"},
        "field": [
            described
            for column in schema
            if (described := _field(kind, column.name, (), column.type)) is not None
        ],
    }


def _field(
    kind: str, column: str, path: tuple[str, ...], type_: pa.DataType
) -> dict[str, Any] | None:
    """A column, or a member of one, or None if Croissant has no word for its type."""
    where = "/".join((kind, column, *path))
    described: dict[str, Any] = {
        "@type": "cr:Field",
        "@id": where,
        "name": path[-1] if path else column,
        "description": ROW[column].about.replace("`", "") if column in ROW and not path else "",
    }
    if pa.types.is_list(type_) or pa.types.is_large_list(type_):
        described |= {"isArray": True, "arrayShape": "-1"}
        type_ = type_.value_type
    if pa.types.is_struct(type_) and not path:
        members = [_field(kind, column, (member.name,), member.type) for member in type_]
        return {**described, "subField": [member for member in members if member]}
    for is_it, name in _DATA_TYPES.items():
        if is_it(type_):
            source: dict[str, Any] = {
                "fileSet": {"@id": f"{kind}-files"},
                "extract": {"column": column},
            }
            if path:
                source["transform"] = {"jsonPath": ".".join(path)}
            return {**described, "dataType": name, "source": source}
    return None


def _drop_empty(value: dict[str, Any]) -> dict[str, Any]:
    """The mapping without what says nothing, at any depth."""
    kept: dict[str, Any] = {}
    for key, inner in value.items():
        if isinstance(inner, dict):
            inner = _drop_empty(inner)
        elif isinstance(inner, list):
            inner = [_drop_empty(i) if isinstance(i, dict) else i for i in inner]
        if inner not in (None, "", [], {}):
            kept[key] = inner
    return kept
