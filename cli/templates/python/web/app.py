"""The @NAME@ app: one function from request to response."""

from freehold import Request, Response, config, store


def handle(request: Request) -> Response:
    visits = store("visits")
    match request.method, request.path:
        case "GET", "/":
            return Response(f"{config.get('GREETING', 'hello')} from @NAME@, visit {visits.increment('count')}\n")
        case "GET", "/api/visits":
            return Response.json({"visits": int(visits.get("count") or 0)})
        case "POST", "/api/echo":
            return Response.json(request.json())
        case _:
            return Response("not found\n", 404)
