"""SDKs as their documentation shows them, against imitations of what they call."""

import freehold
import stripe


def with_stripe():
    client = stripe.StripeClient("sk_test_a", base_addresses={"api": freehold.config["UPSTREAM"]})
    made = client.v1.customers.create(params={"email": "a@a.example"})
    try:
        client.v1.customers.retrieve("cus_none")
    except stripe.InvalidRequestError as error:
        return [made.id, made.email, str(error.code), error.http_status]
    return "no error"


def handle(request):
    return repr({"/stripe": with_stripe}[request.path]())
