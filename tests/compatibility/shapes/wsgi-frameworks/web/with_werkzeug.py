from werkzeug.wrappers import Request, Response


@Request.application
def app(request):
    return Response(f"Hello {request.args.get('name')}")
