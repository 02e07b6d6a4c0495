"""The @NAME@ app: an ordinary Flask app. `freehold` reaches the key-value store and the configuration."""

from flask import Flask, jsonify, render_template

import freehold

app = Flask(__name__)


@app.get("/")
def index():
    visits = freehold.store("visits").increment("count")
    return render_template("index.html", greeting=freehold.config.get("GREETING", "hello"), visits=visits)


@app.get("/api/visits")
def visits():
    return jsonify(visits=int(freehold.store("visits").get("count") or 0))
