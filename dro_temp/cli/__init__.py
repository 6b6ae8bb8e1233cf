"""The command line: `dro-temp lm fit | eval | generate | view`. Thin: it only composes what is below."""
