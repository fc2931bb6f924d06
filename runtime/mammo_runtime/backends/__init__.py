"""One file for each engine. A backend knows no model; `session.BACKENDS` names them."""
