"""This release as a model of sentence-transformers, by the package retrieval-distill: SentenceTransformer(PATH,
trust_remote_code=True). All the work is done by the installed package; this file only names it.
"""

try:
    from distill.release.sentencemodule import SentenceModule
except ImportError as reason:
    raise ImportError(
        f"this model is run by the package retrieval-distill, which cannot be imported here ({reason}); "
        "pip install 'retrieval-distill[st]'"
    ) from reason


class ReleaseModule(SentenceModule):
    """The model of this folder."""
