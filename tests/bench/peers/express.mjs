import express from 'express'
import { port, queue } from './queue.mjs'

const app = express()
app.use(express.json())
app.use(async (request, response) => {
  await queue.add('callback', request.body)
  response.json({ received: true })
})
app.listen(port, '127.0.0.1')
