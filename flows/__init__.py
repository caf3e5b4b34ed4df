"""When steps run: chained, scheduled, spread over workers."""
